#include "ops/kernel_benchmark.h"

#include <algorithm>

#include "base/busy_timer.h"
#include "ops/copy_bandwidth.h"

namespace quaver {
namespace {

constexpr double kSecondsPerRound = 0.01;

/// Waits for everything that the backend was asked to do.
void finish(Backend& backend) {
  if (backend.device() == Device::host) return;
  std::uint8_t value = 0;
  const Tensor mark = backend.allocate(DType::u8, {1});
  backend.fill(mark, 0);
  backend.copy_to_host(mark, &value);
}

/// `threads`: of the host; 0 on a device.
double seconds_of(Backend& backend, const std::function<void()>& body, int threads, int repeats) {
  finish(backend);
  const BusyTimer timer(threads);
  for (int i = 0; i < repeats; ++i) body();
  finish(backend);
  return timer.seconds() / repeats;
}

/// Calls of `body` that take kSecondsPerRound.
int repeats_of(Backend& backend, const std::function<void()>& body, int threads) {
  body();
  return std::max(1, static_cast<int>(kSecondsPerRound / seconds_of(backend, body, threads, 1)));
}

/// Copies between two buffers of its own, in a device's memory.
class DeviceCopier {
 public:
  /// As many bytes as an operation moves: a copy of few does not reach the rate of one of many either.
  DeviceCopier(Backend& backend, double moved)
      : backend_(backend),
        bytes_(std::clamp<std::int64_t>(static_cast<std::int64_t>(moved / 2), 1, kMostBytes)),
        from_(backend.allocate(DType::u8, {bytes_})),
        to_(backend.allocate(DType::u8, {bytes_})) {
    backend.fill(from_, 1);
    repeats_ = repeats_of(
        backend, [&] { backend_.copy(from_, to_); }, 0);
  }
  double bytes_per_second() {
    const double seconds = seconds_of(
        backend_, [&] { backend_.copy(from_, to_); }, 0, repeats_);
    return 2.0 * static_cast<double>(bytes_) / seconds;
  }

 private:
  static constexpr std::int64_t kMostBytes = std::int64_t{1} << 30;  // beyond any cache
  Backend& backend_;
  std::int64_t bytes_;
  Tensor from_, to_;
  int repeats_ = 1;
};

/// Measures bytes read and written per second by a copy in the backend's memory; `moved` by the operation beside it.
std::function<double()> copy_meter(Backend& backend, int threads, double moved) {
  if (backend.device() == Device::host)
    return [copy = std::make_shared<CopyBandwidth>(threads)] { return copy->measure(); };
  return [copier = std::make_shared<DeviceCopier>(backend, moved)] { return copier->bytes_per_second(); };
}

}  // namespace

KernelSpeed measure_kernel(Backend& backend, const KernelCase& kernel, int threads, int rounds,
                           const std::function<double()>& peak) {
  const std::function<void()> run = kernel.prepare(backend);
  const double bytes = kernel.bytes + (backend.needs_transposed_fp8() ? kernel.transposed_bytes : 0);
  const std::function<double()> ceiling = kernel.flops > 0 ? peak : copy_meter(backend, threads, bytes);
  const int repeats = repeats_of(backend, run, threads);
  const double work = kernel.flops > 0 ? kernel.flops : bytes;
  std::vector<double> seconds, ceilings, ratios;
  for (int round = 0; round < rounds; ++round) {
    ceilings.push_back(ceiling());
    seconds.push_back(seconds_of(backend, run, threads, repeats));
    ratios.push_back(work / seconds.back() / ceilings.back());
  }
  return {kernel.name,     kernel.shape, threads,          bytes,
          median(seconds), kernel.flops, median(ceilings), median(ratios)};
}

}  // namespace quaver
