/// What a user is told when there is no GPU that can be used, or when one fails. Plain functions of what CUDA said, so that
/// every message is tested without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace quaver::cuda {

/// The oldest chip with FP8 products, as 10 * major + minor.
constexpr int kOldestChip = 89;

/// What CUDA answered when it was asked for its devices. Versions are CUDA's numbers: 13000 is 13.0.
struct DeviceSearch {
  int driver_serves = 0;  ///< 0: no driver is installed
  int built_for = 0;
  bool driver_too_old = false;  ///< as CUDA itself says
  std::string error;            ///< CUDA's words if the search failed; empty
  int devices = 0;
};
/// Throws Error(usage) with what is missing and what to do, if there is no device to use.
void require_device(const DeviceSearch& search);
/// Throws Error(usage) for a chip without FP8.
void require_chip(const std::string& device, int major, int minor);

/// Throws Error(failure): how much was wanted, who holds what, and what to change.
[[noreturn]] void fail_for_memory(std::size_t wanted, std::int64_t in_use, std::size_t available,
                                  std::size_t total);

/// How a call of CUDA failed.
struct CallFailure {
  std::string text, name;  ///< CUDA's words and the error's name
  bool is_sticky = false;  ///< a kernel went wrong: the process cannot use the device any more
};
/// Throws Error(failure) that says what was attempted.
[[noreturn]] void fail_call(const std::string& what, const CallFailure& failure);
/// The same for a kernel, which it names.
[[noreturn]] void fail_launch(const std::string& kernel, const CallFailure& failure);

}  // namespace quaver::cuda
