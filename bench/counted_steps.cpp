/// What the counters of casts cost in a whole training step: FP8 steps with the kernels of the AVX-512 level beside the same
/// steps with these kernels compiled without counters, in turn, of two models that begin alike and see the same tokens.
///
/// usage: bench_counted_steps RUN.toml [--pairs N] [section.key=value ...]
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <vector>

#include "base/busy_timer.h"
#include "base/check.h"
#include "ops/cpu/cpu_backend.h"
#include "train/synthetic_batch.h"
#include "train/trainer.h"

namespace quaver {
namespace cpu::uncounted {
extern const Kernels kernels;
}  // namespace cpu::uncounted

namespace {

/// Its counters hold nonsense, so nothing is concluded from them.
class UncountedBackend : public CpuBackend {
 public:
  explicit UncountedBackend(int threads) : CpuBackend(threads, cpu::Level::avx512, cpu::uncounted::kernels) {}
  void refuse_non_finite_casts(const Tensor&, const Tensor&, const Tensor&) override {}
};

class TimedRun {
 public:
  TimedRun(std::shared_ptr<Backend> backend, const RunConfig& config)
      : trainer_(std::move(backend), config) {}
  /// Seconds of one step of one micro-batch.
  double step(const HostBatch& batch) {
    const BusyTimer timer(trainer_.config().threads);
    loss_ = trainer_.step(1e-4f, std::span(&batch, 1)).loss.nats;
    return timer.seconds();
  }
  double loss() const { return loss_; }

 private:
  Trainer trainer_;
  double loss_ = 0;
};

int run(const std::string& path, const std::vector<std::string>& overrides, int pairs) {
  const auto levels = cpu::supported_levels();
  if (levels.back() != cpu::Level::avx512) {
    fmt::print(stderr,
               "bench_counted_steps: this processor has no AVX-512 level, whose kernels are compared\n");
    return 2;
  }
  std::vector<std::string> settings{"data.path=unread"};
  settings.insert(settings.end(), overrides.begin(), overrides.end());
  RunConfig config = load_run_config(path, settings);
  config.train.accumulation = 1;
  TimedRun counted(
      std::make_shared<CpuBackend>(config.threads, cpu::Level::avx512, cpu::kernels_of(cpu::Level::avx512)),
      config),
      uncounted(std::make_shared<UncountedBackend>(config.threads), config);
  std::vector<double> with, without, ratios;
  for (int pair = -1; pair < pairs; ++pair) {  // -1: memory is touched for the first time
    const HostBatch batch = synthetic_batch(config, static_cast<std::uint64_t>(pair + 1));
    const bool first = pair % 2 == 0;
    const double a = (first ? counted : uncounted).step(batch), b = (first ? uncounted : counted).step(batch);
    require(counted.loss() == uncounted.loss(), "the steps differ: losses {} and {}", counted.loss(),
            uncounted.loss());
    if (pair < 0) continue;
    with.push_back(first ? a : b);
    without.push_back(first ? b : a);
    ratios.push_back(with.back() / without.back());
  }
  std::sort(ratios.begin(), ratios.end());
  const auto quartile = [&](std::size_t n) { return ratios[n * (ratios.size() - 1) / 4]; };
  fmt::print("{} x {}, {}: counted {:.1f} ms, not {:.1f} ms, ratio {:.4f} ({:.4f} to {:.4f}), {} pairs\n",
             config.train.batch, config.model.context,
             config.threads == 1 ? "1 thread" : fmt::format("{} threads", config.threads), median(with) * 1e3,
             median(without) * 1e3, median(ratios), quartile(1), quartile(3), pairs);
  return 0;
}

}  // namespace
}  // namespace quaver

int main(int argc, char** argv) {
  CLI::App app("what the counters of casts cost in a training step");
  std::string path;
  std::vector<std::string> overrides;
  int pairs = 51;
  app.add_option("RUN", path)->required();
  app.add_option("--pairs", pairs)->check(CLI::PositiveNumber);
  app.add_option("OVERRIDES", overrides);
  CLI11_PARSE(app, argc, argv);
  return quaver::run(path, overrides, pairs);
}
