#include "ops/cuda/device_messages.h"

#include "base/check.h"

namespace quaver::cuda {
namespace {

std::string version(int number) {
  return fmt::format("{}.{}", number / 1000, number % 1000 / 10);
}

std::string gib(std::size_t bytes) {
  return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1 << 30));
}

std::string describe(const CallFailure& failure) {
  return fmt::format("{} ({}){}", failure.text, failure.name,
                     failure.is_sticky ? "; the device cannot be used any more by this process. "
                                         "CUDA_LAUNCH_BLOCKING=1 names the kernel at fault"
                                       : "");
}

}  // namespace

void require_device(const DeviceSearch& search) {
  require(search.driver_serves > 0,
          "backend: cuda needs NVIDIA's driver, which is not installed here; choose backend = \"cpu\"");
  require(!search.driver_too_old,
          "backend: the NVIDIA driver is too old: it serves CUDA {}, this build needs {}.0 or a later minor; "
          "update the driver, or choose backend = \"cpu\"",
          version(search.driver_serves), search.built_for / 1000);
  require(search.error.empty() && search.devices > 0,
          "backend: cuda finds no GPU here ({}); choose backend = \"cpu\"",
          search.error.empty() ? "none visible; CUDA_VISIBLE_DEVICES may hide it" : search.error);
}

void require_chip(const std::string& device, int major, int minor) {
  require(10 * major + minor >= kOldestChip,
          "backend: {} is an sm_{}{}; cuda needs sm_89 (Ada) or later, the first with FP8; choose backend = "
          "\"cpu\"",
          device, major, minor);
}

void fail_for_memory(std::size_t wanted, std::int64_t in_use, std::size_t available, std::size_t total) {
  fail(ErrorKind::failure,
       "cuda: out of memory: {} wanted, {} in use by this run, {} of the device's {} free. Use a smaller "
       "train.batch (more micro-batches per step keep the step's size), a shorter model.context, or a "
       "smaller model",
       gib(wanted), gib(static_cast<std::size_t>(in_use)), gib(available), gib(total));
}

void fail_call(const std::string& what, const CallFailure& failure) {
  fail(ErrorKind::failure, "cuda: {} failed: {}", what, describe(failure));
}

void fail_launch(const std::string& kernel, const CallFailure& failure) {
  fail(ErrorKind::failure, "cuda: kernel {} (or one before it) failed: {}", kernel, describe(failure));
}

}  // namespace quaver::cuda
