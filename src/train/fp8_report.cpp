#include "train/fp8_report.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "quaver/backend.h"
#include "quaver/linear.h"

namespace quaver {
namespace {

/// Every slot; a shared input once.
class SlotCollector : public ModuleVisitor {
 public:
  void linear(const std::string& /*name*/, Linear& linear) override {
    const Fp8State& state = linear.fp8();
    if (state.owns_input) add(state.input);
    add(state.weight);
    add(state.grad_output);
  }

  std::vector<std::shared_ptr<ScalingSlot>> slots;

 private:
  void add(const std::shared_ptr<ScalingSlot>& slot) {
    if (slot) slots.push_back(slot);
  }
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
  return {a.cast - b.cast, a.saturated - b.saturated, a.underflowed - b.underflowed,
          a.nan - b.nan,   a.infinite - b.infinite,   a.zeros - b.zeros};
}

std::vector<std::shared_ptr<ScalingSlot>> slots_of(Module& module) {
  SlotCollector collector;
  module.visit("", collector);
  return std::move(collector.slots);
}

void clear_exponents(Backend& backend, Module& module) {
  for (const auto& slot : slots_of(module)) {
    if (slot->exponents) backend.fill(slot->exponents, 0);
  }
}

CastCounts sum_of_counters(std::span<const std::int64_t> counters) {
  CastCounts counts;
  for (std::size_t slot = 0; slot < counters.size(); slot += kCastCounters) {
    counts.cast += counters[slot + kCastElements];
    counts.saturated += counters[slot + kCastSaturated];
    counts.underflowed += counters[slot + kCastUnderflowed];
    counts.nan += counters[slot + kCastNan];
    counts.infinite += counters[slot + kCastInfinite];
    counts.zeros += counters[slot + kCastZeros];
  }
  return counts;
}

CastCounts count_casts(Backend& backend, Module& module) {
  std::vector<Tensor> counters;
  for (const auto& slot : slots_of(module)) counters.push_back(slot->counters);
  const Tensor all =
      backend.allocate(DType::i64, {static_cast<std::int64_t>(counters.size()), kCastCounters});
  backend.gather(counters, all);
  std::vector<std::int64_t> values(static_cast<std::size_t>(all.elements()));
  backend.copy_to_host(all, values.data());
  return sum_of_counters(values);
}

Fp8Coverage fp8_coverage(Module& module) {
  CoverageCounter counter;
  module.visit("", counter);
  return counter.coverage;
}

}  // namespace quaver
