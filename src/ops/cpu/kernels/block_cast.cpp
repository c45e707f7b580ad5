#include "ops/cpu/kernels/block_cast.h"

#include "ops/cpu/kernels/simd_memory.h"

// Every operation is exact or rounded as it stands, so the levels agree; the compiler vectorises the plain loops.
namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

std::uint32_t bits_of(float x) {
  return __builtin_bit_cast(std::uint32_t, x);
}
float float_of(std::uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}

constexpr std::uint32_t kMagnitude = 0x7FFFFFFF, kInfinity = 0x7F800000;

void widen(Real real, const void* x, std::int64_t cols, float* to) {
  if (real == Real::f32) {
    __builtin_memcpy(to, x, static_cast<std::size_t>(cols) * 4);
    return;
  }
  const auto* from = static_cast<const std::uint16_t*>(x);
  for (std::int64_t n = 0; n < cols; ++n) to[n] = float_of(static_cast<std::uint32_t>(from[n]) << 16);
}

void raise_amax(const float* x, std::int64_t cols, std::uint32_t* bits) {
  for (std::int64_t n = 0; n < cols; ++n) {
    const std::uint32_t magnitude = bits_of(x[n]) & kMagnitude;
    bits[n] = bits[n] > magnitude ? bits[n] : magnitude;
  }
}

void hadamard(float* rows, std::int64_t stride, std::int64_t cols, std::uint32_t signs) {
  constexpr int kRows = 16;
  for (int i = 0; i < kRows; ++i) {
    const std::uint32_t sign = (signs >> i & 1) << 31;
    float* x = rows + i * stride;
    for (std::int64_t n = 0; n < cols; ++n) x[n] = float_of(bits_of(x[n]) ^ sign);
  }
  for (int apart = 1; apart < kRows; apart *= 2) {
    const float scale = apart == kRows / 2 ? 0.25f : 1.0f;
    for (int i = 0; i < kRows; ++i) {
      if (i & apart) continue;
      float* __restrict__ a = rows + i * stride, * __restrict__ b = rows + (i + apart) * stride;
      for (std::int64_t n = 0; n < cols; ++n) {
        const float sum = a[n] + b[n], difference = a[n] - b[n];
        a[n] = sum * scale;
        b[n] = difference * scale;
      }
    }
  }
}

/// A register of 64-bit lanes, of which the lower halves count.
typedef std::uint64_t NativeU64 __attribute__((vector_size(kNativeLanes * 4)));
constexpr int kWideLanes = kNativeLanes / 2;

/// Of the lower halves. g++ 12 does not find these instructions by itself at every level.
[[gnu::always_inline]] inline NativeU64 wide_product(NativeU64 a, std::uint32_t b) {
#if defined(__AVX512F__)
  return reinterpret_cast<NativeU64>(
      _mm512_maskz_mul_epu32(0xFF, reinterpret_cast<__m512i>(a), _mm512_set1_epi64(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<NativeU64>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<NativeU64>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), _mm_set1_epi64x(b)));
#else
  return (a & std::uint64_t{0xFFFFFFFF}) * std::uint64_t{b};
#endif
}

typedef std::uint32_t LowerHalves __attribute__((vector_size(kNativeLanes * 2)));

[[gnu::always_inline]] inline void store_lower(NativeU64 x, std::uint32_t* to) {
  const LowerHalves halves = __builtin_convertvector(x, LowerHalves);
  __builtin_memcpy(to, &halves, sizeof halves);
}

/// Philox4x32-10 (base/random.h): words[kLanes i + lane] of counter first_counter + lane.
[[gnu::always_inline]] inline void philox(std::uint64_t seed, std::uint64_t stream,
                                          std::uint64_t first_counter, std::uint32_t* words) {
  constexpr std::uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  NativeU64 c0{}, c2 = NativeU64{} + stream, c3 = c2 >> 32;
  for (int lane = 0; lane < kWideLanes; ++lane) c0[lane] = first_counter + static_cast<std::uint64_t>(lane);
  NativeU64 c1 = c0 >> 32;
  auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const NativeU64 p0 = wide_product(c0, kMultiplier0), p1 = wide_product(c2, kMultiplier1);
    c0 = (p1 >> 32) ^ c1 ^ std::uint64_t{key0};
    c2 = (p0 >> 32) ^ c3 ^ std::uint64_t{key1};
    c1 = p1;
    c3 = p0;
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  store_lower(c0, words);
  store_lower(c1, words + kLanes);
  store_lower(c2, words + 2 * kLanes);
  store_lower(c3, words + 3 * kLanes);
}

/// Four numbers of each counter, from first / 4 onwards.
const float* uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t first, std::int64_t cols,
                     float* scratch) {
  const std::uint64_t skipped = first % 4;
  std::uint64_t counter = first / 4;
  for (std::int64_t done = 0; done < cols + static_cast<std::int64_t>(skipped);
       done += 4 * kLanes, counter += kLanes) {
    std::uint32_t words[4 * kLanes];
    for (int lane = 0; lane < kLanes; lane += kWideLanes)
      philox(seed, stream, counter + static_cast<std::uint64_t>(lane), words + lane);
    float* to = scratch + done;
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < 4; ++i)
        to[4 * lane + i] =
            static_cast<float>(static_cast<std::int32_t>(words[i * kLanes + lane] >> 8)) * 0x1p-24f;
    }
  }
  return scratch + skipped;
}

/// As Fp8Encoder (quantize.h), for any format and with a multiplier of each element.
template <bool Stochastic>
[[gnu::flatten]] void encode_row(const CodeFormat format, const float* x, const float* multiplier,
                                 const float* uniforms, std::int64_t cols, std::uint8_t* codes,
                                 CodeCounts& counts) {
  const int code_shift = 23 - format.mantissa_bits;
  const i32x16 infinity = i32s(static_cast<std::int32_t>(kInfinity)),
               absolute = i32s(static_cast<std::int32_t>(kMagnitude)),
               largest = i32s(static_cast<std::int32_t>(bits_of(format.largest))),
               smallest = i32s(static_cast<std::int32_t>(format.smallest_exponent << 23));
  i32x16 beyond = i32s(0), nan_results = i32s(0), nans = i32s(0), underflowed = i32s(0);
  i32x16 infinite = i32s(0), zeros = i32s(0);
  std::int64_t padding = 0;
  for_vectors(cols, [&](std::int64_t n, auto lanes) {
    const f32x16 value = load(x + n, lanes);
    const i32x16 y = bits_of(value * load(multiplier + n, lanes)), magnitude = y & absolute;
    const i32x16 is_nan = magnitude > infinity, clamped = min(magnitude, largest);
    const i32x16 exponent = max(clamped & infinity, smallest);
    i32x16 steps;
    if constexpr (Stochastic) {
      // Times 2^mantissa_bits / 2^exponent, exactly: neighbours are 1 apart.
      const f32x16 position =
          float_of_bits(clamped) * float_of_bits(i32s((254 + format.mantissa_bits) << 23) - exponent);
      constexpr float kRounds = 0x1.8p23f, kInteger = 0x1p23f;
      const f32x16 nearest = (position + kRounds) - kRounds;
      const f32x16 lower = select(nearest > position, nearest - 1.0f, nearest);
      const i32x16 up = position - lower > load(uniforms + n, lanes);
      steps = bits_of(lower + kInteger) - bits_of(f32s(kInteger)) - up;
    } else {
      const i32x16 magic = exponent + i32s(code_shift << 23);
      steps = bits_of(float_of_bits(clamped) + float_of_bits(magic)) - magic;
    }
    const i32x16 code = select(is_nan, i32s(format.nan), steps + ((exponent - smallest) >> code_shift));
    const i32x16 x_magnitude = bits_of(value) & absolute, x_is_nan = x_magnitude > infinity;
    beyond -= magnitude > largest;
    nan_results -= is_nan;
    nans -= x_is_nan;
    infinite -= x_magnitude == infinity;
    zeros -= x_magnitude == i32s(0);
    padding += padded(lanes);  // loaded as zeros
    underflowed -= select(x_is_nan, i32s(0), (code == i32s(0)) & (x_magnitude > i32s(0)));
    const i32x16 sign = select(is_nan, i32s(0), (y >> 31) & i32s(format.sign));
    store(code | sign, codes + n, lanes);
  });
  counts.saturated += sum(beyond) - sum(nan_results);
  counts.underflowed += sum(underflowed);
  counts.nan += sum(nans);
  counts.infinite += sum(infinite);
  counts.zeros += sum(zeros) - padding;
}

void encode(const CodeFormat& format, const float* x, const float* multiplier, const float* uniforms,
            std::int64_t cols, std::uint8_t* codes, CodeCounts& counts) {
  uniforms ? encode_row<true>(format, x, multiplier, uniforms, cols, codes, counts)
           : encode_row<false>(format, x, multiplier, uniforms, cols, codes, counts);
}

void decode(const float* table, const std::uint8_t* codes, const float* scale, std::int64_t cols,
            std::uint16_t* values) {
  for (std::int64_t n = 0; n < cols; ++n) {
    const std::uint32_t bits = bits_of(table[codes[n]] * scale[n]);
    const std::uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    values[n] = static_cast<std::uint16_t>((bits & kMagnitude) > kInfinity ? 0x7FC0u : rounded);
  }
}

}  // namespace

extern const BlockCastKernels block_cast_kernels;
const BlockCastKernels block_cast_kernels = {
    .widen = widen,
    .raise_amax = raise_amax,
    .hadamard = hadamard,
    .uniform = uniform,
    .encode = encode,
    .decode = decode,
};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
