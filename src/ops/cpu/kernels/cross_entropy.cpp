#include "ops/cpu/kernels/cross_entropy.h"

#include "ops/cpu/kernels/exponential.h"
#include "ops/cpu/kernels/quantize.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

constexpr float kLowest = -__builtin_inff();

/// NaN never wins here; it reaches the sum.
template <typename T>
[[gnu::always_inline]] inline float largest_of(const T* x, std::int64_t count) {
  F32<kAtOnce> best = f32s<kAtOnce>(kLowest);
  f32x16 rest = f32s(kLowest);
  const auto raise = [&]<int N>(F32<N> v) __attribute__((always_inline)) {
    if constexpr (N == kAtOnce) {
      best = max(v, best);
    } else {
      rest = max(v, rest);
    }
  };
  for_blocks<kAtOnce>(
      count, [&](std::int64_t i, auto lanes)
                 __attribute__((always_inline)) { raise(pad(load(x + i, lanes), lanes, kLowest)); });
  return largest(max_each(best, rest));
}

/// Keeps the exponentials: a load in place of a second exponential. Fetches the next block's logits meanwhile.
template <typename T>
[[gnu::always_inline]] inline float sum_of_exponentials(const T* x, float shift, std::int64_t count,
                                                        float* exponentials) {
  f32x16 total = f32s(0.0f);
  for_blocks<kAtOnce>(
      count, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
        const T* next = x + i + kLogitBlock;
        for (const T* line = next; line < next + lanes_in(lanes); line += 64 / sizeof(T))
          __builtin_prefetch(line);
        const auto e = exp(load(x + i, lanes) - shift);
        total = add_each(total, pad(e, lanes, 0.0f));
        store(e, exponentials + i, lanes);
      });
  return sum(total);
}

struct ShiftedSum {
  float shift;  // the largest logit
  float total;  // sum of e^(x - shift)
};

[[gnu::always_inline]] inline float scalar_exp(float x) {
  return exp(f32s(x)).part[0][0];
}

/// Block by block, so that memory is read once. shifts[block]: the largest logit so far, by which the block's exponentials
/// are shifted.
template <typename T>
[[gnu::always_inline]] inline ShiftedSum sum_row(const T* x, std::int64_t count, float* exponentials,
                                                 float* shifts) {
  ShiftedSum row{kLowest, 0.0f};
  for (std::int64_t begin = 0; begin < count; begin += kLogitBlock) {
    const std::int64_t size = count - begin < kLogitBlock ? count - begin : kLogitBlock;
    const float here = largest_of(x + begin, size);
    if (here > row.shift) {
      row.total *= scalar_exp(row.shift - here);
      row.shift = here;
    }
    shifts[begin / kLogitBlock] = row.shift;
    // -inf less -inf would be NaN, but e^-inf is 0.
    row.total +=
        sum_of_exponentials(x + begin, row.shift == kLowest ? 0.0f : row.shift, size, exponentials + begin);
  }
  return row;
}

/// `value` in the given lane, else 0.
template <typename V>
[[gnu::always_inline]] inline V only_lane(std::int64_t lane, float value) {
  float lanes[sizeof(V) / sizeof(float)] = {};
  lanes[lane] = value;
  V v;
  __builtin_memcpy(&v, lanes, sizeof v);
  return v;
}

/// The gradient's row: softmax less 1 at the target, times gradient_scale.
template <typename T>
[[gnu::always_inline]] inline void store_gradient(Producer<T>& producer, const CrossEntropyRows& loss,
                                                  std::int64_t row, std::int64_t count,
                                                  const ShiftedSum& sum) {
  const std::int64_t target = loss.targets[row];
  const float scale = loss.gradient_scale;
  for (std::int64_t begin = 0; begin < count; begin += kLogitBlock) {
    const float shift = loss.shifts[begin / kLogitBlock];
    const float factor = scale / sum.total * scalar_exp(shift - sum.shift);
    const std::int64_t size = count - begin < kLogitBlock ? count - begin : kLogitBlock;
    producer.store_row(
        row, begin, size, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
          auto result = load(loss.exponentials + begin + i, lanes) * factor;
          const std::int64_t lane = target - begin - i;
          if (__builtin_expect(lane >= 0 && lane < lanes_in(lanes), 0))
            result = result - only_lane<decltype(result)>(lane, scale);
          return result;
        });
  }
}

/// Of a row without a target the gradient is 0.
inline void clear(const CrossEntropyRows& loss, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) loss.exponentials[i] = 0.0f;
  for (std::int64_t i = 0; i < count; i += kLogitBlock) loss.shifts[i / kLogitBlock] = 0.0f;
}

template <typename T>
[[gnu::flatten]] void loss_rows(Extent extent, const CrossEntropyRows& loss, const ProducerRows& dlogits,
                                const T* type) {
  Producer<T> producer(dlogits);
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    ShiftedSum sum{0.0f, 1.0f};
    if (loss.targets[row] >= 0) {
      sum = sum_row(row_of(loss.logits, row, type), extent.cols, loss.exponentials, loss.shifts);
      loss.largest[row] = sum.shift;
      loss.sum[row] = sum.total;
    } else if (loss.wants_gradient) {
      clear(loss, extent.cols);
    }
    if (loss.wants_gradient) store_gradient(producer, loss, row, extent.cols, sum);
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
