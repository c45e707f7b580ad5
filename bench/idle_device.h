/// A device that computes nothing: the CUDA backend's own code on it shows what the host does for a step.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "quaver/backend.h"

namespace quaver::idle {

/// What reached the device by name: in lists of `Backend::run_repeated`, and outside of them.
struct Started {
  std::int64_t listed = 0, alone = 0;
};
using Counts = std::map<std::string, Started>;

/// Kernels, products and copies of any size end at once and leave memory as it is: zero, except what the host copied there. Lists
/// are recorded as CUDA graphs are; a replay does nothing, or, where `counts` is given, adds to it what it stands for.
/// `counts` must outlive the backend, and there is one such backend at a time.
std::shared_ptr<Backend> make_backend(Counts* counts);

}  // namespace quaver::idle
