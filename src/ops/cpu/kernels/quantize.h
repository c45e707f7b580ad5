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

#if defined(__AVX512BF16__)
/// Results are computed and then encoded in runs: both at once need more registers than there are.
constexpr std::int64_t kRunPairs = 32;

/// Calls body(column, pairs) for the runs of a row of `count` columns; returns where the tail begins.
template <typename F>
[[gnu::always_inline]] inline std::int64_t for_runs(std::int64_t count, F body) {
  const std::int64_t all = count / kPairLanes;
  for (std::int64_t done = 0; done < all; done += kRunPairs) {
    body(done * kPairLanes, all - done < kRunPairs ? all - done : kRunPairs);
  }
  return all * kPairLanes;
}

/// body(pair, lanes) over the pairs of a run: two pairs at once, then one.
template <typename F>
[[gnu::always_inline]] inline void for_pairs(std::int64_t pairs, F body) {
  std::int64_t pair = 0;
  for (; pair + 2 <= pairs; pair += 2) body(pair, Whole<4>{});
  if (pair < pairs) body(pair, Whole<2>{});
}
#endif

template <typename T>
class Producer {
 public:
  explicit Producer(const ProducerRows& out)
      : out_(out),
        encoder_(out.e5m2, out.scale),
        bf16_encoder_(out.e5m2, out.scale, out.bytes != nullptr),
        f32_encoder_(out.e5m2, out.scale) {}

  /// Stores result_of(i, lanes) in column begin + i for i in [0, count).
  template <typename F>
  [[gnu::always_inline]] void store_row(std::int64_t row, std::int64_t begin, std::int64_t count,
                                        F result_of) {
    std::int64_t done = 0;
#if defined(__AVX512BF16__)
    if constexpr (kHasPairs<T>) {
      Halves results[kRunPairs];
      done = for_runs(
          count, [&](std::int64_t at, std::int64_t pairs) __attribute__((always_inline)) {
            for_pairs(
                pairs, [&](std::int64_t pair, auto lanes) __attribute__((always_inline)) {
                  to_halves(result_of(at + pair * kPairLanes, lanes), results + pair);
                });
            store_run(row, begin + at, results, pairs);
          });
    }
#endif
    for_vectors(
        count - done, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
          store(row, begin + done + i, result_of(done + i, lanes), lanes);
        });
  }

#if defined(__AVX512BF16__)
  /// `pairs` times kPairLanes results; only where kHasPairs<T>.
  [[gnu::always_inline]] void store_run(std::int64_t row, std::int64_t col, const Halves* x,
                                        std::int64_t pairs) {
    if (out_.values != nullptr) {
      Bf16* values = static_cast<Bf16*>(out_.values) + row * out_.values_stride + col;
      for (std::int64_t i = 0; i < pairs; ++i) store_native(x[i], values + i * kPairLanes);
    }
    if (out_.bytes == nullptr) return;
    std::uint8_t* bytes = out_.bytes + row * out_.bytes_stride + col;
    if (!bf16_encoder_.usable()) {
      for (std::int64_t i = 0; i < pairs; ++i) encode_halves(x[i], bytes + i * kPairLanes);
      return;
    }
    bf16_encoder_.store_run(x, pairs, bytes, out_.streams);
  }
#endif

  /// kStretch numbers that are BF16 in memory.
  [[gnu::always_inline]] void store_stretch(std::int64_t row, std::int64_t col, const Bf16* from) {
#if defined(__AVX512BF16__)
    store_two_halves(row, col, load_native<Halves>(from), load_native<Halves>(from + kPairLanes));
#else
    store_vectors(row, col, from);
#endif
  }

  /// kStretch numbers that are FP32 in memory.
  [[gnu::always_inline]] void store_stretch(std::int64_t row, std::int64_t col, const float* from) {
    const bool bytes_alone = out_.values == nullptr && out_.bytes != nullptr;
    if (bytes_alone && f32_encoder_.store(from, out_.bytes + row * out_.bytes_stride + col, out_.streams))
      return;
    store_vectors(row, col, from);
  }

  template <typename Lanes>
  [[gnu::always_inline]] void store(std::int64_t row, std::int64_t col, f32x16 result, Lanes lanes) {
    if (out_.values != nullptr) {
      T* values = static_cast<T*>(out_.values) + row * out_.values_stride;
      QUAVER_CPU_LEVEL::store(result, values + col, lanes);
    }
    if (out_.bytes != nullptr) {
      // Padding is zeros: no amax, no underflow.
      const f32x16 x = pad(rounded_to(result, static_cast<T*>(nullptr)), lanes, 0.0f);
      padding_ += padded(lanes);
      QUAVER_CPU_LEVEL::store(encode(x), out_.bytes + row * out_.bytes_stride + col, lanes);
    }
  }

  /// Hands over what was counted.
  void finish() {
    if (out_.bytes == nullptr) return;
    out_.counts->amax_bits = largest(amax_);
    out_.counts->saturated = -sum(saturated_);
    out_.counts->underflowed = -sum(underflowed_);
    out_.counts->nan = -sum(nan_);
    out_.counts->infinite = -sum(infinite_);
    out_.counts->zeros = -sum(zeros_) - padding_;
    bf16_encoder_.add_to(*out_.counts);
    f32_encoder_.add_to(*out_.counts);
#if defined(__AVX512BF16__)
    if (out_.streams) _mm_sfence();  // other threads read the bytes after this
#endif
  }

 private:
  template <typename From>
  [[gnu::always_inline]] void store_vectors(std::int64_t row, std::int64_t col, const From* from) {
    for (std::int64_t i = 0; i < kStretch; i += kLanes) store(row, col + i, load(from + i, Full{}), Full{});
  }

#if defined(__AVX512BF16__)
  [[gnu::always_inline]] void encode_halves(Halves x, std::uint8_t* bytes) {
    QUAVER_CPU_LEVEL::store(encode(low_of(x)), bytes, Full{});
    QUAVER_CPU_LEVEL::store(encode(high_of(x)), bytes + kLanes, Full{});
  }

  [[gnu::always_inline]] void store_halves(std::int64_t row, std::int64_t col, Halves x) {
    if (out_.values != nullptr) {
      store_native(x, static_cast<Bf16*>(out_.values) + row * out_.values_stride + col);
    }
    if (out_.bytes == nullptr) return;
    std::uint8_t* bytes = out_.bytes + row * out_.bytes_stride + col;
    if (bf16_encoder_.usable()) {
      bf16_encoder_.store(x, bytes);
    } else {
      encode_halves(x, bytes);
    }
  }

  [[gnu::always_inline]] void store_two_halves(std::int64_t row, std::int64_t col, Halves a, Halves b) {
    if (out_.bytes == nullptr || !bf16_encoder_.usable()) {
      store_halves(row, col, a);
      store_halves(row, col + kPairLanes, b);
      return;
    }
    if (out_.values != nullptr) {
      Bf16* values = static_cast<Bf16*>(out_.values) + row * out_.values_stride + col;
      store_native(a, values);
      store_native(b, values + kPairLanes);
    }
    bf16_encoder_.store_two(a, b, out_.bytes + row * out_.bytes_stride + col, out_.streams);
  }
#endif

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

  const ProducerRows out_;
  const Fp8Encoder encoder_;
  Bf16Encoder bf16_encoder_;
  F32Encoder f32_encoder_;
  i32x16 amax_ = i32s(0), saturated_ = i32s(0), underflowed_ = i32s(0), nan_ = i32s(0);
  i32x16 infinite_ = i32s(0), zeros_ = i32s(0);
  std::int64_t padding_ = 0;
};

}  // namespace
}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
