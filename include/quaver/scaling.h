/// Scaling state of FP8 tensors ("fp8_meta"), and what a producer needs to write FP8 itself.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "quaver/recipe.h"
#include "quaver/tensor.h"

namespace quaver {

/// What every cast counts, in the pass that casts. Index into `ScalingSlot::counters`.
enum CastCounter : int {
  kCastElements,     ///< elements cast
  kCastSaturated,    ///< |x * scale| > fp8_max, infinities included
  kCastUnderflowed,  ///< x != 0 became a zero
  kCastNan,          ///< x is NaN
  kCastInfinite,     ///< x is infinite; among the saturated too
  kCastZeros,        ///< x is zero
  kCastCounters,
};

/// The delayed-scaling state of one quantised tensor of one module. All members live on the backend's device.
struct ScalingSlot {
  Tensor scale;         ///< f32[1], starts at 1
  Tensor amax_history;  ///< f32[L], starts at 0. Entry 0 stages the amax of casts since the last update; L-1
                        ///< is the newest finished one
  Tensor counters;      ///< i64[kCastCounters], running totals since the owner last reset them
  Tensor exponents;     ///< i64[kExponents], absent until they are counted: see `Context::count_exponents`
  /// What a cast ahead of its step (an optimizer's, of the next step's weight) staged and counted, f32[1] and
  /// i64[kCastCounters]: the next update takes it in. Absent in slots that nothing is cast ahead into.
  Tensor ahead_amax = {}, ahead_counters = {};
};

/// Biased exponents of FP32: entry e counts |x| in [2^(e-127), 2^(e-126)); 0 holds zeros and subnormals, 255 what is
/// not finite.
constexpr std::int64_t kExponents = 256;

/// Scales of blocks of a matrix.
struct BlockScales {
  /// f32, e8m0 or e4m3 [ceil(M / rows), ceil(N / cols)]; rows may have a stride; absent: no blocks. If `swizzled`, e8m0
  /// in tiles of 128 x 4, contiguous (ops/scale_tiles.h)
  Tensor scale_inv;
  std::int64_t rows = 0, cols = 0;  ///< of one block
  /// The same transposed, where the backend's GEMM reads them so; absent elsewhere.
  Tensor transposed = {};
  bool swizzled = false;  ///< where the backend's GEMM reads them so
};

/// A matrix [M,N] cast under a recipe: its bytes, and what they were cast with. A GEMM dequantises with these scales, never
/// newer ones.
struct QuantizedTensor {
  /// e4m3 or e5m2, row-major; e2m1: u8 [M, ceil(N / 2)], the even column in the low half of a byte. Absent where GEMMs that read
  /// `transposed` are the only ones left
  Tensor bytes;
  Tensor transposed;  ///< the same bytes transposed, where the backend's GEMM needs them; absent elsewhere
  /// f32[1] = 1 / scale of the tensor, correctly rounded (it may be an FP32 subnormal); absent: none
  Tensor scale_inv;
  BlockScales blocks = {};     ///< absent: one scale per tensor
  std::int64_t e2m1_cols = 0;  ///< N if the elements are e2m1
  bool defined() const { return bytes.defined() || transposed.defined(); }
};

/// Random numbers of a cast: element (m, n) of [M,N], i = m N + n, takes the upper 24 bits of word i % 4 of Philox at counter
/// (i / 4, stream), key `seed`. The signs of the Hadamard matrix depend on `seed` alone, so that both operands of a GEMM agree.
struct CastNoise {
  std::uint64_t seed = 0, stream = 0;
};

/// The sizes that `Backend::quantize` writes, uninitialised.
class Backend;
QuantizedTensor allocate_quantized(Backend& backend, const OperandCast& cast, std::int64_t rows,
                                   std::int64_t cols);

/// Casts of one tensor, made when first asked for and shared by all modules that read it.
class CastCache {
 public:
  /// The cast, or null when it was not made yet.
  const QuantizedTensor* find(const OperandCast& cast) const {
    for (const auto& [known, quantized] : casts_) {
      if (known == cast) return &quantized;
    }
    return nullptr;
  }
  void add(const OperandCast& cast, QuantizedTensor quantized) {
    casts_.emplace_back(cast, std::move(quantized));
  }

 private:
  std::vector<std::pair<OperandCast, QuantizedTensor>> casts_;
};

/// How to cast: handed to whatever produces a tensor, so that the producer writes FP8 directly.
///
///   q = encode(float(x) * scale);  amax = max(amax, max |float(x)|), NaN ignored;  counters += counts
struct Quantizer {
  DType format = DType::e4m3;
  Tensor scale;     ///< f32[1], read
  Tensor amax;      ///< f32[1], raised to the running maximum; absent: leave no trace (evaluation)
  Tensor counters;  ///< i64[kCastCounters], added to; absent: not counted
};

/// Where a producer writes its result: in high precision, as FP8, or both. What is absent is not written.
struct Output {
  Tensor values;              ///< bf16 or f32; absent when nobody reads high precision
  QuantizedTensor quantized;  ///< absent when nobody reads FP8
  Quantizer quantizer;        ///< how `quantized` is cast
  /// What recipes other than delayed scaling make of `values` afterwards; producers leave it alone. May be null.
  std::shared_ptr<CastCache> casts = nullptr;

  /// Where the producer of columns [begin, begin + count) alone should write them. The producers of all columns leave together
  /// what one of the whole matrix would: a maximum, sums, and one scale.
  Output columns(std::int64_t begin, std::int64_t count) const;
};

/// What the GEMMs of a module read of a weight (f32 [N,K]), for an optimizer to write in the pass that updates the weight. Each
/// may be absent.
struct WeightCopies {
  Tensor bf16;          ///< bf16 [N,K]: the weight rounded
  QuantizedTensor fp8;  ///< the weight as `Backend::cast` casts it
  Quantizer quantizer;  ///< how `fp8` is cast
};

/// One slot's update: the arguments of the rule at `ScaleUpdater`.
struct ScaleUpdate {
  ScalingSlot slot;
  float fp8_max;
  int margin;
  AmaxCompute algo;
  std::shared_ptr<const AmaxFunction> function = nullptr;  ///< of AmaxCompute::custom
};

/// Whoever can run scale updates where the slots live (a Backend). The rule, per slot, with history length L:
///
///   amax_history[0] <- max(amax_history[0], ahead_amax);  counters += ahead_counters;  both ahead_ <- 0
///                                                      (where they are present)
///   last = amax_history[0]                             the staged amax
///   if last == 0: leave the slot as it is              nothing was cast: no roll
///   window = amax_history[1..L-1] followed by last
///   amax_history <- window with its first entry (the oldest) replaced by 0      (L = 1: [0])
///   amax = max(window), NaN entries never winning, for `max`; last for `most_recent`; function(window) for `custom`
///   scale <- fp8_max * 2^-margin / amax   if amax is finite and > 0, else unchanged;  an infinite scale <-
///   FLT_MAX
///
/// The arithmetic is FP32: the product is exact, the division is rounded once.
class ScaleUpdater {
 public:
  virtual ~ScaleUpdater() = default;
  virtual void update_scales(std::span<const ScaleUpdate> updates) = 0;
};

}  // namespace quaver
