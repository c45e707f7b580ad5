/// One step of AdamW.
#pragma once

#include <cstdint>

namespace quaver::cpu {

struct AdamWFactors {
  float lr = 0, beta1 = 0, beta2 = 0, epsilon = 0, weight_decay = 0;
  float clip = 1;                          ///< of the gradient
  float correction1 = 1, correction2 = 1;  ///< 1 - beta^step
};

struct AdamWKernels {
  void (*step)(const AdamWFactors& factors, std::int64_t count, const float* gradient, float* value, float* m,
               float* v);
};

}  // namespace quaver::cpu
