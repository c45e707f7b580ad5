#include "ops/cpu/kernels/adamw.h"

#include "ops/cpu/kernels/quantize.h"
#include "ops/cpu/kernels/simd_memory.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

[[gnu::flatten]] void step(const AdamWFactors& factors, std::int64_t count, const float* gradient,
                           float* value, float* m, float* v) {
  const AdamWFactors f = factors;  // stores through the float pointers cannot change a local
  for_vectors(count, [&](std::int64_t i, auto lanes) {
    const f32x16 g = load(gradient + i, lanes) * f.clip;
    const f32x16 first = f.beta1 * load(m + i, lanes) + (1.0f - f.beta1) * g;
    const f32x16 second = f.beta2 * load(v + i, lanes) + ((1.0f - f.beta2) * g) * g;
    const f32x16 mhat = first / f32s(f.correction1);
    const f32x16 vhat = second / f32s(f.correction2);
    const f32x16 old = load(value + i, lanes);
    const f32x16 change = mhat / (sqrt(vhat) + f.epsilon) + f.weight_decay * old;
    store(first, m + i, lanes);
    store(second, v + i, lanes);
    store(old - f.lr * change, value + i, lanes);
  });
}

[[gnu::flatten]] void round_bf16(const float* x, const float* uniform, std::int64_t count,
                                 std::uint16_t* to) {
  auto* const halves = reinterpret_cast<Bf16*>(to);
  for_vectors(count, [&](std::int64_t i, auto lanes) {
    const f32x16 values = load(x + i, lanes);
    const i32x16 bits = bits_of(values), remainder = bits & i32s(0xFFFF);
    constexpr std::int32_t kExact = 0x4B000000;  // 2^23, whose last bit is 1
    const f32x16 share = (float_of_bits(remainder | i32s(kExact)) - 0x1p23f) * 0x1p-16f;
    const i32x16 up = share > load(uniform + i, lanes);  // -1 where true
    const i32x16 rounded = (bits - remainder) - (up << 16);
    const i32x16 is_nan = (bits & i32s(kAbsMask)) > i32s(kInfBits);
    store(select(is_nan, values, float_of_bits(rounded)), halves + i, lanes);  // exact
  });
}

void decode(const float* table, float scale, bool roots, const std::uint8_t* codes, std::int64_t count,
            float* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = table[codes[i]] * scale;
  if (!roots) return;
  for (std::int64_t i = 0; i < count; ++i) to[i] *= to[i];
}

[[gnu::flatten]] void take_roots(float* x, std::int64_t count) {
  for_vectors(count, [&](std::int64_t i, auto lanes) { store(sqrt(load(x + i, lanes)), x + i, lanes); });
}

[[gnu::flatten]] float amax(const float* x, std::int64_t count, float least) {
  f32x16 magnitudes = f32s(least);
  for_vectors(count, [&](std::int64_t i, auto lanes) {
    // The second operand where the first is NaN.
    magnitudes = max(float_of_bits(bits_of(load(x + i, lanes)) & i32s(kAbsMask)), magnitudes);
  });
  return largest(magnitudes);
}

void keep_positive(const float* x, std::int64_t count, std::uint8_t* codes) {
  for (std::int64_t i = 0; i < count; ++i)
    codes[i] = static_cast<std::uint8_t>(codes[i] | (x[i] > 0 && codes[i] == 0 ? 1 : 0));
}

}  // namespace

extern const AdamWKernels adamw_kernels;
const AdamWKernels adamw_kernels = {
    .step = step,
    .round_bf16 = round_bf16,
    .decode = decode,
    .take_roots = take_roots,
    .amax = amax,
    .keep_positive = keep_positive,
};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
