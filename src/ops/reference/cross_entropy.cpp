#include <cmath>
#include <limits>
#include <optional>

#include "base/check.h"
#include "ops/contracts.h"
#include "ops/reference/elements.h"
#include "ops/reference/reference_backend.h"

namespace quaver {
namespace {

float log_sum_exp(const reference::RealMatrix& logits, std::int64_t m, std::int64_t vocab) {
  float largest = -std::numeric_limits<float>::infinity();
  for (std::int64_t n = 0; n < vocab; ++n) largest = std::fmax(largest, logits(m, n));
  float sum = 0;
  for (std::int64_t n = 0; n < vocab; ++n) sum += std::exp(logits(m, n) - largest);
  return largest + std::log(sum);
}

}  // namespace

void ReferenceBackend::cross_entropy(const Tensor& logits, const Tensor& targets, float gradient_scale,
                                     const Tensor& losses, const Output& dlogits) {
  check_cross_entropy(logits, targets, losses, dlogits);
  const reference::RealMatrix z(logits);
  const bool wants_gradient = is_wanted(dlogits);
  std::optional<reference::Producer> gradient;
  if (wants_gradient) gradient.emplace(dlogits, logits.dtype());
  for (std::int64_t m = 0; m < logits.rows(); ++m) {
    const std::int64_t target = targets.data<std::int32_t>()[m];
    require(target >= -1 && target < logits.cols(), "cross_entropy: target {} at row {} of {} classes",
            target, m, logits.cols());
    const float lse = log_sum_exp(z, m, logits.cols());
    losses.data<float>()[m] = target < 0 ? 0.0f : lse - z(m, target);
    if (!wants_gradient) continue;
    for (std::int64_t n = 0; n < logits.cols(); ++n) {
      const float difference = std::exp(z(m, n) - lse) - (n == target ? 1.0f : 0.0f);
      gradient->store(m, n, target < 0 ? 0.0f : gradient_scale * difference);
    }
  }
}

}  // namespace quaver
