/// The store of every producer of FP8: rounds a vector of FP32 results to the call's real type, stores it if
/// wanted, and encodes it to FP8 while taking amax and counts. For kernel files only.
#pragma once

#include "ops/cpu/kernels/bf16_encoder.h"
#include "ops/cpu/kernels/f32_encoder.h"
#include "ops/cpu/kernels/rows.h"
#include "ops/cpu/kernels/simd_memory.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// Calls f with a null pointer of the memory type that `real` names.
template <typename F>
[[gnu::always_inline]] inline void with_type(Real real, F f) {
  if (real == Real::bf16) {
    f(static_cast<Bf16*>(nullptr));
  } else {
    f(static_cast<float*>(nullptr));
  }
}

template <typename T>
[[gnu::always_inline]] inline const T* row_of(const ConstRows& rows, std::int64_t row, const T*) {
  return static_cast<const T*>(rows.data) + row * rows.stride;
}
template <typename T>
[[gnu::always_inline]] inline T* row_of(const Rows& rows, std::int64_t row, const T*) {
  return static_cast<T*>(rows.data) + row * rows.stride;
}

constexpr std::int32_t kAbsMask = 0x7FFFFFFF;
constexpr std::int32_t kInfBits = 0x7F800000;

/// Encodes vectors to one FP8 format. Adding 2^(e + 23 - mantissa bits) to |y| of exponent e leaves |y| as a
/// multiple of FP8's last place in the low bits of the sum: the addition rounds, to nearest and ties to even.
/// Integers are compared as signed numbers, which SSE2 and AVX2 can.
struct Fp8Encoder {
  f32x16 scale;
  i32x16 max_bits;      // of the largest finite value
  i32x16 min_exponent;  // bits of the smallest normal
  i32x16 code_offset;   // code of the smallest normal less one step of the exponent
  i32x16 inside;        // numbers x of at most this magnitude do not saturate; -1: none is known not to
  int mantissa_bits;

  explicit Fp8Encoder(bool e5m2, float scale_value)
      : scale(f32s(scale_value)),
        max_bits(i32s(e5m2 ? 0x47600000 : 0x43E00000)),
        min_exponent(i32s((e5m2 ? 113 : 121) << 23)),
        code_offset(i32s(e5m2 ? 113 << 2 : 121 << 3)),
        inside(i32s(-1)),
        mantissa_bits(e5m2 ? 2 : 3) {
    const float most = largest_inside(e5m2, scale_value);
    if (scale_value > 0 && scale_value < __builtin_inff() && most < __builtin_inff())
      inside = i32s(__builtin_bit_cast(std::int32_t, most));
  }

  /// The code without its sign, given the bits of a magnitude that does not saturate.
  [[gnu::always_inline]] i32x16 code_of(i32x16 magnitude) const {
    const i32x16 exponent = max(magnitude & i32s(kInfBits), min_exponent);
    const i32x16 magic = exponent + i32s((23 - mantissa_bits) << 23);
    const i32x16 steps = bits_of(float_of_bits(magnitude) + float_of_bits(magic)) - magic;
    return steps + ((exponent >> (23 - mantissa_bits)) - code_offset);
  }
  /// With the sign of a number whose bits these are.
  [[gnu::always_inline]] static i32x16 with_sign(i32x16 code, i32x16 bits) {
    return code | ((bits >> 24) & i32s(0x80));
  }
  /// The code in the low 8 bits of every lane, given the bits of y = x * scale and of |y|.
  [[gnu::always_inline]] i32x16 encode(i32x16 y, i32x16 magnitude) const {
    const i32x16 code = with_sign(code_of(min(magnitude, max_bits)), y);
    return select(magnitude > i32s(kInfBits), i32s(0x7F), code);
  }
};

/// Fp8Encoder with what it counted, for any numbers.
class CountingEncoder {
 public:
  CountingEncoder(bool e5m2, float scale) : encoder_(e5m2, scale) {}

  /// The code in the low 8 bits of every lane.
  [[gnu::always_inline]] i32x16 encode(f32x16 x) {
    const i32x16 x_magnitude = bits_of(x) & i32s(kAbsMask);
    if (__builtin_expect(any(x_magnitude > encoder_.inside), 0)) return encode_any(x, x_magnitude);
    const i32x16 code = encoder_.code_of(bits_of(float_of_bits(x_magnitude) * encoder_.scale));
    const i32x16 zero = x_magnitude == i32s(0);
    // Masks are -1 where true: the counts run downwards.
    zeros_ += zero;
    underflowed_ += (code == i32s(0)) - zero;
    amax_ = max(amax_, x_magnitude);
    return Fp8Encoder::with_sign(code, bits_of(x));
  }

  /// Padding is zeros: no amax, no underflow.
  [[gnu::always_inline]] void leave_out(int padding) { padding_ += padding; }

  void add_to(CastCounts& counts) const {
    const std::int32_t amax_bits = largest(amax_);
    if (amax_bits > counts.amax_bits) counts.amax_bits = amax_bits;
    counts.underflowed -= sum(underflowed_);
    counts.zeros -= sum(zeros_) + padding_;
    if (!any(saturated_ + nan_ + infinite_)) return;
    counts.saturated -= sum(saturated_);
    counts.nan -= sum(nan_);
    counts.infinite -= sum(infinite_);
  }

 private:
  /// Of numbers that may saturate, infinities and NaN among them.
  [[gnu::always_inline]] i32x16 encode_any(f32x16 x, i32x16 x_magnitude) {
    const i32x16 y = bits_of(x * encoder_.scale);
    const i32x16 y_magnitude = y & i32s(kAbsMask);
    const i32x16 code = encoder_.encode(y, y_magnitude);
    const i32x16 x_nan = x_magnitude > i32s(kInfBits);
    nan_ += x_nan;
    infinite_ += x_magnitude == i32s(kInfBits);
    zeros_ += x_magnitude == i32s(0);
    amax_ = max(amax_, select(x_nan, i32s(0), x_magnitude));
    saturated_ += (y_magnitude > encoder_.max_bits) & (i32s(kInfBits + 1) > y_magnitude);
    underflowed_ += (x_magnitude > i32s(0)) & ((code & i32s(0x7F)) == i32s(0));
    return code;
  }

  const Fp8Encoder encoder_;
  i32x16 amax_ = i32s(0), saturated_ = i32s(0), underflowed_ = i32s(0), nan_ = i32s(0);
  i32x16 infinite_ = i32s(0), zeros_ = i32s(0);
  std::int64_t padding_ = 0;
};

/// Stores vectors of results, of any value.
template <typename T>
class VectorStore {
 public:
  explicit VectorStore(const ProducerRows& out) : out_(out), encoder_(out.e5m2, out.scale) {}

  template <typename Lanes>
  [[gnu::always_inline]] void store(std::int64_t row, std::int64_t col, f32x16 result, Lanes lanes) {
    if (out_.values != nullptr) {
      T* values = static_cast<T*>(out_.values) + row * out_.values_stride;
      QUAVER_CPU_LEVEL::store(result, values + col, lanes);
    }
    if (out_.bytes != nullptr) {
      const f32x16 x = pad(rounded_to(result, static_cast<T*>(nullptr)), lanes, 0.0f);
      encoder_.leave_out(padded(lanes));
      QUAVER_CPU_LEVEL::store(encoder_.encode(x), out_.bytes + row * out_.bytes_stride + col, lanes);
    }
  }

  void finish() const {
    if (out_.bytes != nullptr) encoder_.add_to(*out_.counts);
  }

 private:
  const ProducerRows out_;
  CountingEncoder encoder_;
};

/// Stores `count` numbers from memory. Not inlined: one copy serves all formulas. By value, so that nobody's Producer has an
/// address and its encoders stay in registers.
template <typename T, typename From>
[[gnu::noinline]] void store_vectors(ProducerRows out, std::int64_t row, std::int64_t col, const From* from,
                                     std::int64_t count) {
  VectorStore<T> to(out);
  for_vectors(
      count, [&](std::int64_t i, auto lanes)
                 __attribute__((always_inline)) { to.store(row, col + i, load(from + i, lanes), lanes); });
  to.finish();
}

/// Columns of a run. Results are computed and then encoded in runs: both at once need more registers than there are, and would
/// make every formula hold every encoder.
constexpr std::int64_t kRunColumns = 1024;

/// The results of a run, in the nearest cache.
template <typename T>
class Run {
 public:
  template <int N>
  [[gnu::always_inline]] void keep(std::int64_t i, F32<N> results) {
    store(results, results_ + i, Whole<N>{});
  }
  const float* results() const { return results_; }

 private:
  alignas(64) float results_[kRunColumns];
};

#if defined(__AVX512BF16__)
/// Rounded.
template <>
class Run<Bf16> {
 public:
  template <int N>
  [[gnu::always_inline]] void keep(std::int64_t i, F32<N> results) {
    if constexpr (N == 1) {
      store(results, reinterpret_cast<Bf16*>(pairs_) + i, Full{});
    } else {
      to_halves(results, pairs_ + i / kPairLanes);
    }
  }
  const Halves* pairs() const { return pairs_; }
  const Bf16* results() const { return reinterpret_cast<const Bf16*>(pairs_); }

 private:
  Halves pairs_[kRunColumns / kPairLanes];
};
#endif

/// Calls body(column, columns) for the runs of a row of `count` columns.
template <typename F>
[[gnu::always_inline]] inline void for_runs(std::int64_t count, F body) {
  for (std::int64_t done = 0; done < count; done += kRunColumns)
    body(done, count - done < kRunColumns ? count - done : kRunColumns);
}

/// body(column, lanes) over the columns of a run: where there are pairs of vectors two of them at once, then one.
template <typename T, typename F>
[[gnu::always_inline]] inline void for_run(std::int64_t columns, F body) {
  std::int64_t done = 0;
  if constexpr (kHasPairs<T>) {
    for (; done + 2 * kPairLanes <= columns; done += 2 * kPairLanes) body(done, Whole<4>{});
    if (done + kPairLanes <= columns) {
      body(done, Whole<2>{});
      done += kPairLanes;
    }
  }
  for_vectors(
      columns - done, [&](std::int64_t i, auto lanes)
                          __attribute__((always_inline)) { body(done + i, lanes); });
}

template <typename T>
class Producer {
 public:
  explicit Producer(const ProducerRows& out)
      : out_(out),
        bf16_encoder_(out.e5m2, out.scale, out.bytes != nullptr),
        f32_encoder_(out.e5m2, out.scale) {
    if (out.bytes != nullptr) *out.counts = CastCounts{};
  }

  /// Stores result_of(i, lanes) in column begin + i for i in [0, count).
  template <typename F>
  [[gnu::always_inline]] void store_row(std::int64_t row, std::int64_t begin, std::int64_t count,
                                        F result_of) {
    Run<T> run;
    for_runs(
        count, [&](std::int64_t first, std::int64_t columns) __attribute__((always_inline)) {
          for_run<T>(
              columns, [&](std::int64_t i, auto lanes)
                           __attribute__((always_inline)) { run.keep(i, result_of(first + i, lanes)); });
          store_run(row, begin + first, run, columns);
        });
  }

  /// The first `columns` of a run.
  [[gnu::always_inline]] void store_run(std::int64_t row, std::int64_t col, const Run<T>& run,
                                        std::int64_t columns) {
    std::int64_t done = 0;
#if defined(__AVX512BF16__)
    if constexpr (kHasPairs<T>) {
      if (out_.bytes == nullptr || bf16_encoder_.usable()) {
        const std::int64_t pairs = columns / kPairLanes;
        store_pairs(row, col, run.pairs(), pairs);
        done = pairs * kPairLanes;
      }
    }
#endif
    if (done < columns) store_vectors<T>(out_, row, col + done, run.results() + done, columns - done);
  }

#if defined(__AVX512BF16__)
  /// `count` numbers that are BF16 in memory.
  [[gnu::always_inline]] void store_numbers(std::int64_t row, std::int64_t col, const Bf16* from,
                                            std::int64_t count) {
    std::int64_t done = 0;
    if (out_.bytes != nullptr && bf16_encoder_.usable()) {
      for (; done + kStretch <= count; done += kStretch)
        store_two_halves(row, col + done, load_native<Halves>(from + done),
                         load_native<Halves>(from + done + kPairLanes));
    }
    if (done < count) store_vectors<T>(out_, row, col + done, from + done, count - done);
  }

  /// `count` numbers that are FP32 in memory.
  [[gnu::always_inline]] void store_numbers(std::int64_t row, std::int64_t col, const float* from,
                                            std::int64_t count) {
    const bool bytes_alone = out_.values == nullptr && out_.bytes != nullptr;
    VectorStore<T> to(out_);
    std::int64_t done = 0;
    for (; done + kStretch <= count; done += kStretch) {
      std::uint8_t* bytes = out_.bytes + row * out_.bytes_stride + col + done;
      if (bytes_alone && f32_encoder_.store(from + done, bytes, out_.streams)) continue;
      for (std::int64_t i = done; i < done + kStretch; i += kLanes)
        to.store(row, col + i, load(from + i, Full{}), Full{});
    }
    to.finish();
    if (done < count) store_vectors<T>(out_, row, col + done, from + done, count - done);
  }
#else
  /// `count` numbers that are `From` in memory.
  template <typename From>
  void store_numbers(std::int64_t row, std::int64_t col, const From* from, std::int64_t count) {
    store_vectors<T>(out_, row, col, from, count);
  }
#endif

  /// Results of a few columns.
  void store_few(std::int64_t row, std::int64_t col, const float* results, std::int64_t columns) {
    store_vectors<T>(out_, row, col, results, columns);
  }

  /// Hands over what was counted.
  void finish() {
    if (out_.bytes == nullptr) return;
    bf16_encoder_.add_to(*out_.counts);
    f32_encoder_.add_to(*out_.counts);
#if defined(__AVX512BF16__)
    if (out_.streams) _mm_sfence();  // other threads read the bytes after this
#endif
  }

 private:
#if defined(__AVX512BF16__)
  [[gnu::always_inline]] void store_pairs(std::int64_t row, std::int64_t col, const Halves* x,
                                          std::int64_t pairs) {
    if (out_.values != nullptr) {
      Bf16* values = static_cast<Bf16*>(out_.values) + row * out_.values_stride + col;
      for (std::int64_t i = 0; i < pairs; ++i) store_native(x[i], values + i * kPairLanes);
    }
    if (out_.bytes == nullptr) return;
    bf16_encoder_.store_run(x, pairs, out_.bytes + row * out_.bytes_stride + col, out_.streams);
  }

  [[gnu::always_inline]] void store_two_halves(std::int64_t row, std::int64_t col, Halves a, Halves b) {
    if (out_.values != nullptr) {
      Bf16* values = static_cast<Bf16*>(out_.values) + row * out_.values_stride + col;
      store_native(a, values);
      store_native(b, values + kPairLanes);
    }
    bf16_encoder_.store_two(a, b, out_.bytes + row * out_.bytes_stride + col, out_.streams);
  }
#endif

  const ProducerRows out_;
  Bf16Encoder bf16_encoder_;
  F32Encoder f32_encoder_;
};

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
