#include "ops/cpu/peak.h"

#include <functional>
#include <numeric>
#include <vector>

#include "base/busy_timer.h"
#include "base/threads.h"
#include "ops/cpu/kernels/peak.h"
#include "ops/cpu/levels.h"

namespace quaver::cpu {

namespace {

/// The sum over threads of units per second; work(thread) does some and returns how many.
double sum_of_rates(int threads, double seconds, const std::function<double(std::int64_t)>& work) {
  const Threads team(threads);
  std::vector<double> rates(static_cast<std::size_t>(team.count()));
  team.for_each(team.count(), [&](std::int64_t thread) {
    const BusyTimer timer(team.count());
    double units = 0, elapsed = 0;
    do {
      units += work(thread);
      elapsed = timer.seconds();
    } while (elapsed < seconds);
    rates[static_cast<std::size_t>(thread)] = units / elapsed;
  });
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

}  // namespace

double measure_bf16_peak(int threads, double seconds, Products products) {
  constexpr std::int64_t kIterations = 20000;  // a millisecond at most
  const Level level = choose_level();
  const MatrixUnit* const unit = products == Products::fast ? find_matrix_unit(level) : nullptr;
  const auto multiply = unit ? unit->peak : kernels_of(level).peak->bf16;
  return sum_of_rates(threads, seconds, [&](std::int64_t) { return multiply(kIterations); });
}

ReadBandwidth::ReadBandwidth(int threads)
    : threads_(threads), stretches_(static_cast<std::size_t>(threads)), positions_(stretches_.size(), 0) {
  constexpr std::int64_t kFloats = 1 << 25;  // 128 MiB
  for (std::vector<float>& stretch : stretches_) stretch.assign(kFloats, 1.0f);
}

double ReadBandwidth::measure(double seconds) {
  constexpr std::int64_t kPiece = 1 << 18;  // read in a tenth of a millisecond
  const PeakKernels& kernels = *kernels_of(choose_level()).peak;
  return sum_of_rates(threads_, seconds, [&](std::int64_t thread) {
    const std::vector<float>& stretch = stretches_[static_cast<std::size_t>(thread)];
    std::int64_t& position = positions_[static_cast<std::size_t>(thread)];
    volatile float used = kernels.read(stretch.data() + position, kPiece);
    static_cast<void>(used);
    position = (position + kPiece) % static_cast<std::int64_t>(stretch.size());
    return 4.0 * kPiece;
  });
}

}  // namespace quaver::cpu
