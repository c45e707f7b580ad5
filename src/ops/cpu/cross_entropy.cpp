#include "ops/cpu/kernels/cross_entropy.h"

#include <cmath>

#include "base/check.h"
#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/work.h"

namespace quaver {

using namespace cpu;

namespace {

float logit_at(const Tensor& logits, std::int64_t row, std::int64_t col) {
  const std::int64_t index = row * logits.row_stride() + col;
  return logits.dtype() == DType::bf16 ? to_float(logits.data<bf16>()[index]) : logits.data<float>()[index];
}

std::vector<float> logits_of_targets(const Tensor& logits, const Tensor& targets) {
  std::vector<float> picked(logits.rows(), 0.0f);
  for (std::int64_t m = 0; m < logits.rows(); ++m) {
    const std::int32_t target = targets.data<std::int32_t>()[m];
    require(target >= -1 && target < logits.cols(),
            "cross_entropy: target {} of row {}, but there are {} classes", target, m, logits.cols());
    if (target >= 0) picked[m] = logit_at(logits, m, target);
  }
  return picked;
}

}  // namespace

void CpuBackend::cross_entropy(const Tensor& logits, const Tensor& targets, float gradient_scale,
                               const Tensor& losses, const Output& dlogits) {
  check_cross_entropy(logits, targets, losses, dlogits);
  const Real real = real_of(logits);
  const std::vector<float> picked = logits_of_targets(logits, targets);  // before dlogits overwrites them
  std::vector<float> largest(logits.rows(), 0.0f), sum(logits.rows(), 1.0f);
  const Pieces pieces = Pieces::of_rows({logits.rows(), logits.cols()});
  Production production(dlogits, pieces);
  const Tensor exponentials = allocate(DType::f32, {threads_.count(), logits.cols()});
  const Tensor shifts = allocate(DType::f32, {threads_.count(), logits.cols() / kLogitBlock + 1});
  threads_.for_each_on_thread(pieces.count(), [&](std::int64_t index, int thread) {
    const Piece piece = pieces.at(index);
    const CrossEntropyRows loss{.logits = part(const_rows(logits), piece, real),
                                .targets = targets.data<std::int32_t>() + piece.row,
                                .gradient_scale = gradient_scale,
                                .largest = largest.data() + piece.row,
                                .sum = sum.data() + piece.row,
                                .wants_gradient = is_wanted(dlogits),
                                .exponentials = exponentials.data<float>() + thread * logits.cols(),
                                .shifts = shifts.data<float>() + thread * shifts.cols()};
    kernels_.cross_entropy->rows(real, piece.extent, loss, production.at(piece, real));
  });
  production.finish();
  // The logarithm in double, rounded once: a library's FP32 logarithm may differ between processors.
  for (std::int64_t m = 0; m < logits.rows(); ++m) {
    const double log_sum = std::log(static_cast<double>(sum[m])) + static_cast<double>(largest[m]);
    losses.data<float>()[m] = static_cast<float>(log_sum - static_cast<double>(picked[m]));
  }
}

}  // namespace quaver
