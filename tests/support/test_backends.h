/// The backends that tests of operations run on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "quaver/backend.h"

namespace quaver::testing {

/// "reference", "cpu", "emulation" (the CUDA backend in the launch emulation), and "cuda" where this build
/// has it and a device can be used.
std::vector<std::string> test_backends();

/// One of those; "cuda" is one backend for all tests.
std::shared_ptr<Backend> make_test_backend(const std::string& name);

/// Why test_backends() has no "cuda"; empty if it has.
std::string why_no_cuda();

/// A reference backend whose memory every test backend can use.
std::shared_ptr<Backend> make_shared_reference();

/// Waits for everything that the backend was asked to do.
void finish(Backend& backend);

}  // namespace quaver::testing
