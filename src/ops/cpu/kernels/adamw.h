/// One step of AdamW.
#pragma once

#include <cstdint>

namespace quaver::cpu {

struct AdamWFactors {
  float lr = 0, beta1 = 0, beta2 = 0, epsilon = 0, weight_decay = 0;
  float clip = 1;                          ///< of the gradient
  float correction1 = 1, correction2 = 1;  ///< 1 - beta^step
};

/// The step, and the parts of one on arrays that are not f32 (stored_step.h).
struct AdamWKernels {
  void (*step)(const AdamWFactors& factors, std::int64_t count, const float* gradient, float* value, float* m,
               float* v);
  /// to[i] = bf16(x[i]), the neighbour farther from zero if the remainder exceeds uniform[i].
  void (*round_bf16)(const float* x, const float* uniform, std::int64_t count, std::uint16_t* to);
  /// to[i] = table[codes[i]] * scale; squared, if the codes are those of roots.
  void (*decode)(const float* table, float scale, bool roots, const std::uint8_t* codes, std::int64_t count,
                 float* to);
  /// x[i] = sqrt(x[i]).
  void (*take_roots)(float* x, std::int64_t count);
  /// max |x[i]|, NaN ignored, but at least `least`.
  float (*amax)(const float* x, std::int64_t count, float least);
  /// Codes of 0 that stand for positive x[i] become 1.
  void (*keep_positive)(const float* x, std::int64_t count, std::uint8_t* codes);
};

}  // namespace quaver::cpu
