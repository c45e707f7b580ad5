#include "ops/cuda/device_messages.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/errors.h"

namespace quaver::cuda {
namespace {

/// `action` must throw an Error of `kind` whose message has all the parts.
template <typename Action>
void expect_error(Action action, ErrorKind kind, const std::vector<std::string>& parts) {
  const std::string message = error_message(kind, action);
  for (const std::string& part : parts) EXPECT_TRUE(contains(message, part)) << message << " lacks " << part;
}

DeviceSearch found_one() {
  return {.driver_serves = 13000, .built_for = 13000, .driver_too_old = false, .error = "", .devices = 1};
}

TEST(CudaMessages, ADeviceThatIsThereIsUsed) {
  EXPECT_NO_THROW(require_device(found_one()));
  EXPECT_NO_THROW(require_chip("NVIDIA H100", 9, 0));
  EXPECT_NO_THROW(require_chip("NVIDIA L40S", 8, 9)) << "the oldest with FP8";
}

TEST(CudaMessages, AMissingDriverIsNamed) {
  DeviceSearch search = found_one();
  search.driver_serves = 0;
  expect_error([&] { require_device(search); }, ErrorKind::usage, {"driver", "not installed", "\"cpu\""});
}

TEST(CudaMessages, AnOldDriverIsToldWithBothVersions) {
  DeviceSearch search = found_one();
  search.driver_serves = 12040;
  search.driver_too_old = true;
  search.devices = 0;
  expect_error([&] { require_device(search); }, ErrorKind::usage, {"too old", "12.4", "13.0", "update"});
}

TEST(CudaMessages, NoDeviceIsToldWithItsReason) {
  DeviceSearch search = found_one();
  search.devices = 0;
  expect_error([&] { require_device(search); }, ErrorKind::usage, {"no GPU", "CUDA_VISIBLE_DEVICES"});
  search.error = "system not yet initialized";
  expect_error([&] { require_device(search); }, ErrorKind::usage, {"no GPU", "system not yet initialized"});
}

TEST(CudaMessages, AChipWithoutFp8IsNamed) {
  expect_error([] { require_chip("NVIDIA A100", 8, 0); }, ErrorKind::usage,
               {"NVIDIA A100", "sm_80", "sm_89"});
  expect_error([] { require_chip("NVIDIA RTX A6000", 8, 6); }, ErrorKind::usage, {"sm_86"});
}

TEST(CudaMessages, OutOfMemorySaysHowMuchAndWhatToChange) {
  constexpr std::size_t kGib = std::size_t{1} << 30;
  expect_error(
      [] { fail_for_memory(3 * kGib / 2, 70 * kGib, kGib, 79 * kGib); }, ErrorKind::failure,
      {"1.50 GiB wanted", "70.00 GiB in use", "1.00 GiB of", "79.00 GiB", "train.batch", "model.context"});
}

TEST(CudaMessages, AFailedKernelIsNamed) {
  const CallFailure failure{"an illegal memory access was encountered", "cudaErrorIllegalAddress", true};
  expect_error(
      [&] { fail_launch("rms_norm", failure); }, ErrorKind::failure,
      {"kernel rms_norm", "illegal memory access", "cudaErrorIllegalAddress", "CUDA_LAUNCH_BLOCKING"});
  expect_error([&] { fail_call("waiting for the device", failure); }, ErrorKind::failure,
               {"waiting for the device", "cannot be used any more"});
}

}  // namespace
}  // namespace quaver::cuda
