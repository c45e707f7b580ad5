#include "ops/cpu/kernels/cross_entropy.h"

#include "ops/cpu/kernels/quantize.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

template <typename T>
[[gnu::always_inline]] inline float largest_of(const T* x, std::int64_t count) {
  const f32x16 lowest = f32s(-__builtin_inff());
  f32x16 best = lowest;
  // NaN never wins here; it reaches the sum.
  for_vectors(count, [&](std::int64_t i, auto lanes) {
    best = max(pad(load(x + i, lanes), lanes, -__builtin_inff()), best);
  });
  return largest(best);
}

/// Keeps the exponentials: a load in place of a second exponential.
template <typename T>
[[gnu::always_inline]] inline float sum_of_exponentials(const T* x, float shift, std::int64_t count,
                                                        float* exponentials) {
  f32x16 total = f32s(0.0f);
  for_vectors(count, [&](std::int64_t i, auto lanes) {
    const f32x16 e = exp(load(x + i, lanes) - shift);
    total += pad(e, lanes, 0.0f);
    store(e, exponentials + i, lanes);
  });
  return sum(total);
}

/// 1 in the given lane, else 0.
[[gnu::always_inline]] inline f32x16 one_in_lane(std::int64_t lane) {
  float lanes[kLanes] = {};
  lanes[lane] = 1.0f;
  return load(lanes, Full{});
}

template <typename T>
[[gnu::flatten]] void loss_rows(Extent extent, const CrossEntropyRows& loss, const ProducerRows& dlogits,
                                const T* type) {
  Producer<T> producer(dlogits);
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    const T* x = row_of(loss.logits, row, type);
    const std::int32_t target = loss.targets[row];
    float factor = 0.0f;
    if (target >= 0) {
      const float shift = largest_of(x, extent.cols);
      const float total = sum_of_exponentials(x, shift, extent.cols, loss.exponentials);
      factor = 1.0f / total;
      loss.largest[row] = shift;
      loss.sum[row] = total;
    }
    if (!loss.wants_gradient) continue;
    const f32x16 scale = f32s(loss.gradient_scale);
    producer.store_row(row, 0, extent.cols, [&](std::int64_t col, auto lanes) {
      if (target < 0) return f32s(0.0f);
      f32x16 difference = load(loss.exponentials + col, lanes) * factor;
      const std::int64_t lane = target - col;
      if (__builtin_expect(lane >= 0 && lane < kLanes, 0)) difference = difference - one_in_lane(lane);
      return scale * difference;
    });
  }
  producer.finish();
}

void rows(Real real, Extent extent, const CrossEntropyRows& loss, const ProducerRows& dlogits) {
  with_type(real, [&](auto* type) { loss_rows(extent, loss, dlogits, type); });
}

}  // namespace

extern const CrossEntropyKernels cross_entropy_kernels;
const CrossEntropyKernels cross_entropy_kernels = {.rows = rows};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
