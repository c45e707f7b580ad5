#include <algorithm>
#include <cmath>

#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/kernels/adamw.h"
#include "ops/cpu/kernels/reductions.h"
#include "ops/cpu/work.h"

namespace quaver {

using namespace cpu;

namespace {

constexpr std::int64_t kBlock = std::int64_t{1} << 15;  // elements

struct Stretch {
  const float* data;
  std::int64_t count;
};

std::vector<Stretch> stretches_of(std::span<const Tensor> tensors) {
  std::vector<Stretch> stretches;
  for (const Tensor& tensor : tensors) {
    const std::int64_t elements = tensor.elements();
    for (std::int64_t begin = 0; begin < elements; begin += kBlock) {
      stretches.push_back({tensor.data<float>() + begin, std::min(kBlock, elements - begin)});
    }
  }
  return stretches;
}

float correction(float beta, std::int64_t step) {
  return static_cast<float>(1.0 - std::pow(static_cast<double>(beta), static_cast<double>(step)));
}

}  // namespace

void CpuBackend::global_norm(std::span<const Tensor> tensors, const Tensor& result) {
  check_global_norm(tensors, result);
  const std::vector<Stretch> stretches = stretches_of(tensors);
  std::vector<double> sums(stretches.size());
  threads_.for_each(static_cast<std::int64_t>(stretches.size()), [&](std::int64_t index) {
    sums[index] = kernels_.reductions->sum_of_squares(stretches[index].data, stretches[index].count);
  });
  double total = 0;
  for (double sum : sums) total += sum;
  *result.data<float>() = static_cast<float>(std::sqrt(total));
}

void CpuBackend::adamw(const AdamWStep& step, const Tensor& norm, float max_norm,
                       std::span<const AdamWTensor> tensors) {
  check_adamw(norm, tensors);
  const float total_norm = *norm.data<float>();
  if (!is_usable_norm(total_norm, max_norm)) return;
  AdamWFactors factors{.lr = step.lr,
                       .beta1 = step.beta1,
                       .beta2 = step.beta2,
                       .epsilon = step.epsilon,
                       .weight_decay = step.weight_decay,
                       .clip = max_norm > 0 && total_norm > max_norm ? max_norm / total_norm : 1.0f,
                       .correction1 = correction(step.beta1, step.step),
                       .correction2 = correction(step.beta2, step.step)};
  for (const AdamWTensor& tensor : tensors) {
    factors.weight_decay = tensor.decays ? step.weight_decay : 0;
    threads_.for_blocks(tensor.value.elements(), kBlock, [&](std::int64_t begin, std::int64_t end) {
      kernels_.adamw->step(factors, end - begin, tensor.gradient.data<float>() + begin,
                           tensor.value.data<float>() + begin, tensor.m.data<float>() + begin,
                           tensor.v.data<float>() + begin);
    });
  }
}

}  // namespace quaver
