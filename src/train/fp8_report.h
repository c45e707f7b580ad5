/// What FP8 did in a model: counts of its casts, and how many modules it covered.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "quaver/backend.h"
#include "quaver/linear.h"
#include "quaver/module.h"

namespace quaver {

/// Elements cast to FP8, summed over all slots of a model.
struct CastCounts {
  std::int64_t cast = 0, saturated = 0, underflowed = 0, nan = 0, infinite = 0, zeros = 0;

  std::int64_t non_finite() const { return nan + infinite; }
  friend CastCounts operator-(const CastCounts& a, const CastCounts& b);
  friend bool operator==(const CastCounts&, const CastCounts&) = default;
};

/// The slots of all Linears of a module; an input that siblings share once.
std::vector<std::shared_ptr<ScalingSlot>> slots_of(Module& module);

/// The sums over the slots of rows of counters, kCastCounters each.
CastCounts sum_of_counters(std::span<const std::int64_t> counters);
/// The running totals of all slots.
CastCounts count_casts(Backend& backend, Module& module);

/// Sets the exponent counts of all slots that have any to zero.
void clear_exponents(Backend& backend, Module& module);

/// How many Linears ran in FP8.
struct Fp8Coverage {
  std::int64_t linears = 0;  ///< all
  std::int64_t in_fp8 = 0;   ///< whose fprop ran in FP8
  std::int64_t full = 0;     ///< whose fprop, dgrad and wgrad ran in FP8 every time
};
Fp8Coverage fp8_coverage(Module& module);

}  // namespace quaver
