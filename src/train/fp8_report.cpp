#include "train/fp8_report.h"

#include <algorithm>
#include <array>
#include <memory>
#include <string>

#include "quaver/backend.h"
#include "quaver/linear.h"

namespace quaver {
namespace {

class CastTotals : public ModuleVisitor {
 public:
  explicit CastTotals(Backend& backend) : backend_(backend) {}

  void linear(const std::string& /*name*/, Linear& linear) override {
    const Fp8State& state = linear.fp8();
    if (state.owns_input) add(state.input);
    add(state.weight);
    add(state.grad_output);
  }

  CastCounts counts;

 private:
  void add(const std::shared_ptr<ScalingSlot>& slot) {
    if (!slot) return;
    std::array<std::int64_t, kCastCounters> values;
    backend_.copy_to_host(slot->counters, values.data());
    counts.cast += values[kCastElements];
    counts.saturated += values[kCastSaturated];
    counts.underflowed += values[kCastUnderflowed];
    counts.nan += values[kCastNan];
  }

  Backend& backend_;
};

class CoverageCounter : public ModuleVisitor {
 public:
  void linear(const std::string& /*name*/, Linear& linear) override {
    const auto& gemms = linear.fp8().gemms;
    const bool full = std::all_of(gemms.begin(), gemms.end(), [](const GemmRecord& gemm) {
      return gemm.fp8_runs > 0 && gemm.other_runs == 0;
    });
    ++coverage.linears;
    coverage.in_fp8 += gemms[0].fp8_runs > 0;
    coverage.full += full;
  }

  Fp8Coverage coverage;
};

}  // namespace

CastCounts operator-(const CastCounts& a, const CastCounts& b) {
  return {a.cast - b.cast, a.saturated - b.saturated, a.underflowed - b.underflowed, a.nan - b.nan};
}

CastCounts count_casts(Backend& backend, Module& module) {
  CastTotals counter(backend);
  module.visit("", counter);
  return counter.counts;
}

Fp8Coverage fp8_coverage(Module& module) {
  CoverageCounter counter;
  module.visit("", counter);
  return counter.coverage;
}

}  // namespace quaver
