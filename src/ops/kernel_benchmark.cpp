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

double seconds_of(const std::function<void()>& body, int repeats) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i) body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats;
}

/// Copies between two buffers of its own, in main memory.
class Copier {
 public:
  explicit Copier(int threads) : threads_(threads), from_(kCopyBytes, 1), to_(kCopyBytes) {}

  /// Bytes read and written per second.
  double fastest() {
    const std::int64_t stretch = (kCopyBytes + threads_.count() - 1) / threads_.count();
    const double seconds =
        std::min(seconds_of([&] { run(stretch); }, 1), seconds_of([&] { run(std::int64_t{1} << 18); }, 1));
    return 2.0 * static_cast<double>(kCopyBytes) / seconds;
  }

 private:
  void run(std::int64_t piece) {
    threads_.for_blocks(kCopyBytes, piece, [&](std::int64_t begin, std::int64_t end) {
      std::memcpy(to_.data() + begin, from_.data() + begin, static_cast<std::size_t>(end - begin));
    });
  }
  Threads threads_;
  std::vector<unsigned char> from_, to_;
};

}  // namespace

KernelSpeed measure_kernel(const KernelCase& kernel, int threads, int rounds) {
  const auto backend = make_backend("cpu", threads);
  const std::function<void()> run = kernel.prepare(*backend);
  Copier copier(threads);
  run();
  const int repeats = std::max(1, static_cast<int>(kSecondsPerRound / seconds_of(run, 1)));
  std::vector<double> seconds, copies, ratios;
  for (int round = 0; round < rounds; ++round) {
    copies.push_back(copier.fastest());
    seconds.push_back(seconds_of(run, repeats));
    ratios.push_back(kernel.bytes / seconds.back() / copies.back());
  }
  return {kernel.name, kernel.shape, threads, kernel.bytes, median(seconds), median(copies), median(ratios)};
}

}  // namespace quaver
