/// What the counters of casts cost: the kernels of the AVX-512 level beside the same kernels compiled without them, in turn,
/// on one thread. Both give the same bytes and amax, which is checked first.
///
/// usage: bench_counters [--rounds N]
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "base/busy_timer.h"
#include "base/check.h"
#include "base/random.h"
#include "ops/cpu/kernels/cast.h"
#include "ops/cpu/kernels/norms.h"
#include "ops/cpu/levels.h"
#include "quaver/tensor.h"

namespace quaver {
namespace cpu::uncounted {
extern const CastKernels cast_kernels;
extern const NormKernels norm_kernels;
}  // namespace cpu::uncounted

namespace {

constexpr double kSecondsPerTurn = 0.02;

/// A matrix that is cast to E4M3, and where the bytes go.
struct Work {
  cpu::Extent extent;
  std::vector<bf16> x;
  std::vector<float> gain;
  std::vector<std::uint8_t> bytes;
  cpu::CastCounts counts = {};

  /// `every`: one number in so many is a zero, and the one after it underflows; 0: none.
  Work(std::int64_t rows, std::int64_t cols, std::uint64_t every)
      : extent{rows, cols},
        x(static_cast<std::size_t>(rows * cols)),
        gain(static_cast<std::size_t>(cols), 1.0f),
        bytes(x.size()) {
    const Random random(1, 2);
    for (std::uint64_t i = 0; i < x.size(); ++i) {
      const float usual = random.normal(i);
      const float special = every > 0 && i % every == 0 ? 0.0f : 1e-6f;
      x[i] = to_bf16(every > 0 && i % every < 2 ? special : usual);
    }
  }
  cpu::ConstRows rows() const { return {x.data(), extent.cols}; }
  cpu::ProducerRows out() {
    counts = {};
    return {.bytes = bytes.data(), .bytes_stride = extent.cols, .scale = 64, .counts = &counts};
  }
};

void cast(const cpu::CastKernels& kernels, Work& work) {
  kernels.cast(cpu::Real::bf16, work.extent, work.rows(), work.out());
}

void norm(const cpu::NormKernels& kernels, Work& work) {
  cpu::NormForward norm;
  norm.x = work.rows();
  norm.gain = work.gain.data();
  norm.epsilon = 1e-5f;
  kernels.forward(cpu::Real::bf16, work.extent, norm, work.out());
}

double seconds_of(const std::function<void()>& run, int repeats) {
  const BusyTimer timer(1);
  for (int i = 0; i < repeats; ++i) run();
  return timer.seconds() / repeats;
}

void compare(const std::string& name, Work work, const std::function<void(Work&)>& counted,
             const std::function<void(Work&)>& uncounted, int rounds) {
  uncounted(work);
  const std::vector<std::uint8_t> expected = work.bytes;
  const std::int32_t amax = work.counts.amax_bits;
  counted(work);
  require(work.bytes == expected && work.counts.amax_bits == amax, "{}: the two kernels differ", name);

  const auto with = [&] { counted(work); };
  const auto without = [&] { uncounted(work); };
  const int repeats = std::max(1, static_cast<int>(kSecondsPerTurn / seconds_of(with, 1)));
  std::vector<double> times_with, times_without, ratios;
  for (int round = 0; round < rounds; ++round) {
    const bool first = round % 2 == 0;
    const double a = seconds_of(first ? std::function<void()>(with) : without, repeats);
    const double b = seconds_of(first ? std::function<void()>(without) : with, repeats);
    times_with.push_back(first ? a : b);
    times_without.push_back(first ? b : a);
    ratios.push_back(times_with.back() / times_without.back());
  }
  std::sort(ratios.begin(), ratios.end());
  const auto quartile = [&](std::size_t n) { return ratios[n * (ratios.size() - 1) / 4]; };
  fmt::print("{:<34} {:8.1f} us {:8.1f} us   {:.3f} ({:.3f} to {:.3f})\n", name, median(times_with) * 1e6,
             median(times_without) * 1e6, median(ratios), quartile(1), quartile(3));
}

int run(int rounds) {
  const auto levels = cpu::supported_levels();
  if (levels.back() != cpu::Level::avx512) {
    fmt::print(stderr, "bench_counters: this processor has no AVX-512 level, whose kernels are compared\n");
    return 2;
  }
  const cpu::Kernels& kernels = cpu::kernels_of(cpu::Level::avx512);
  const auto cast_with = [&](Work& work) { cast(*kernels.cast, work); };
  const auto norm_with = [&](Work& work) { norm(*kernels.norms, work); };
  const auto cast_without = [](Work& work) { cast(cpu::uncounted::cast_kernels, work); };
  const auto norm_without = [](Work& work) { norm(cpu::uncounted::norm_kernels, work); };
  fmt::print("{:<34} {:>11} {:>11}   ratio (quartiles), {} rounds\n", "bf16 to e4m3", "counted", "not",
             rounds);
  compare("cast, 256 x 768, usual", {256, 768, 0}, cast_with, cast_without, rounds);
  compare("cast, 256 x 768, 1 in 10 is special", {256, 768, 20}, cast_with, cast_without, rounds);
  compare("cast, 4096 x 3072, usual", {4096, 3072, 0}, cast_with, cast_without, rounds);
  compare("rms_norm, 256 x 768, usual", {256, 768, 0}, norm_with, norm_without, rounds);
  compare("rms_norm, 4096 x 768, usual", {4096, 768, 0}, norm_with, norm_without, rounds);
  return 0;
}

}  // namespace
}  // namespace quaver

int main(int argc, char** argv) {
  CLI::App app("what the counters of casts cost");
  int rounds = 101;
  app.add_option("--rounds", rounds)->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  return quaver::run(rounds);
}
