#include "ops/cpu/peak.h"

#include <chrono>
#include <vector>

#include "base/threads.h"
#include "ops/cpu/kernels/peak.h"
#include "ops/cpu/levels.h"

namespace quaver::cpu {

double measure_bf16_peak(int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr std::int64_t kIterations = 20000;  // well below a millisecond at any level
  const PeakKernels& kernels = *kernels_of(choose_level()).peak;
  const Threads team(threads);
  std::vector<double> rates(static_cast<std::size_t>(team.count()));
  team.for_each(team.count(), [&](std::int64_t item) {
    const auto start = Clock::now();
    double operations = 0, elapsed = 0;
    do {
      operations += kernels.bf16(kIterations);
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    } while (elapsed < seconds);
    rates[static_cast<std::size_t>(item)] = operations / elapsed;
  });
  double sum = 0;
  for (double rate : rates) sum += rate;
  return sum;
}

}  // namespace quaver::cpu
