/// What is fuzzed: each target takes any bytes, and may throw nothing but quaver::Error. libFuzzer drives them
/// (fuzz_main.cpp, one program per target), and ordinary tests replay the inputs of corpus/<name>.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string_view>

namespace quaver::fuzz {

struct Target {
  std::string_view name;
  void (*run)(std::string_view input);
};

/// Every target.
std::span<const Target> targets();

}  // namespace quaver::fuzz
