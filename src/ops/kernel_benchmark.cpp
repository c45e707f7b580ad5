#include "ops/kernel_benchmark.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/threads.h"

namespace quaver {
namespace {

constexpr double kSecondsPerRound = 0.01;
constexpr std::int64_t kCopyBytes = std::int64_t{1} << 26;  // from and to: beyond any cache

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Waits for everything that the backend was asked to do.
void finish(Backend& backend) {
  if (backend.device() == Device::host) return;
  std::uint8_t value = 0;
  const Tensor mark = backend.allocate(DType::u8, {1});
  backend.fill(mark, 0);
  backend.copy_to_host(mark, &value);
}

double seconds_of(Backend& backend, const std::function<void()>& body, int repeats) {
  finish(backend);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i) body();
  finish(backend);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats;
}

/// Copies between two buffers of its own, in a device's memory.
class DeviceCopier {
 public:
  explicit DeviceCopier(Backend& backend)
      : backend_(backend),
        from_(backend.allocate(DType::u8, {kDeviceCopyBytes})),
        to_(backend.allocate(DType::u8, {kDeviceCopyBytes})) {
    backend.fill(from_, 1);
  }
  double bytes_per_second() {
    const double seconds = seconds_of(
        backend_, [&] { backend_.copy(from_, to_); }, kDeviceCopies);
    return 2.0 * static_cast<double>(kDeviceCopyBytes) / seconds;
  }

 private:
  static constexpr std::int64_t kDeviceCopyBytes = std::int64_t{1} << 30;  // beyond any cache
  static constexpr int kDeviceCopies = 10;
  Backend& backend_;
  Tensor from_, to_;
};

/// Copies between two buffers of its own, in main memory.
class HostCopier {
 public:
  HostCopier(Backend& backend, int threads)
      : backend_(backend), threads_(threads), from_(kCopyBytes, 1), to_(kCopyBytes) {}

  double bytes_per_second() {
    const std::int64_t stretch = (kCopyBytes + threads_.count() - 1) / threads_.count();
    const double seconds = std::min(seconds_of(
                                        backend_, [&] { run(stretch); }, 1),
                                    seconds_of(
                                        backend_, [&] { run(std::int64_t{1} << 18); }, 1));
    return 2.0 * static_cast<double>(kCopyBytes) / seconds;
  }

 private:
  void run(std::int64_t piece) {
    threads_.for_blocks(kCopyBytes, piece, [&](std::int64_t begin, std::int64_t end) {
      std::memcpy(to_.data() + begin, from_.data() + begin, static_cast<std::size_t>(end - begin));
    });
  }
  Backend& backend_;
  Threads threads_;
  std::vector<unsigned char> from_, to_;
};

/// Measures bytes read and written per second by a copy in the backend's memory.
std::function<double()> copy_meter(Backend& backend, int threads) {
  if (backend.device() == Device::host)
    return [copier = std::make_shared<HostCopier>(backend, threads)] { return copier->bytes_per_second(); };
  return [copier = std::make_shared<DeviceCopier>(backend)] { return copier->bytes_per_second(); };
}

}  // namespace

KernelSpeed measure_kernel(Backend& backend, const KernelCase& kernel, int threads, int rounds) {
  const std::function<void()> run = kernel.prepare(backend);
  const std::function<double()> copy_speed = copy_meter(backend, threads);
  const double bytes = kernel.bytes + (backend.needs_transposed_fp8() ? kernel.transposed_bytes : 0);
  run();
  const int repeats = std::max(1, static_cast<int>(kSecondsPerRound / seconds_of(backend, run, 1)));
  std::vector<double> seconds, copies, ratios;
  for (int round = 0; round < rounds; ++round) {
    copies.push_back(copy_speed());
    seconds.push_back(seconds_of(backend, run, repeats));
    ratios.push_back(bytes / seconds.back() / copies.back());
  }
  return {kernel.name, kernel.shape, threads, bytes, median(seconds), median(copies), median(ratios)};
}

}  // namespace quaver
