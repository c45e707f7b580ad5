#include "ops/cpu/kernels/adamw.h"

#include "ops/cpu/kernels/simd.h"

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

}  // namespace

extern const AdamWKernels adamw_kernels;
const AdamWKernels adamw_kernels = {.step = step};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
