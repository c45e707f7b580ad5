#include <algorithm>
#include <cmath>

#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/kernels/adamw.h"
#include "ops/cpu/kernels/cast.h"
#include "ops/cpu/kernels/pointwise.h"
#include "ops/cpu/kernels/reductions.h"
#include "ops/cpu/stored_step.h"
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

Extent extent_of(const Tensor& tensor) {
  if (tensor.shape().size() == 2) return {tensor.rows(), tensor.cols()};
  return {1, tensor.elements()};
}

/// Elements [begin, begin + count) of a tensor, and of its bf16 copy while they are in the core's cache.
void step_piece(const Kernels& kernels, const AdamWFactors& factors, const AdamWTensor& tensor,
                std::int64_t begin, std::int64_t count) {
  float* const value = tensor.value.data<float>() + begin;
  kernels.adamw->step(factors, count, tensor.gradient.data<float>() + begin, value,
                      tensor.m.data<float>() + begin, tensor.v.data<float>() + begin);
  if (!tensor.copies.bf16) return;
  kernels.pointwise->convert(Real::f32, value, Real::bf16, tensor.copies.bf16.data<bf16>() + begin, count);
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
    if (!StoredStep::is_plain(tensor)) {
      step_stored(StoredStep(kernels_, factors, step, tensor), tensor);
      continue;
    }
    const Output cast{{}, tensor.copies.fp8, tensor.copies.quantizer};
    const Extent extent = extent_of(tensor.value);
    const Pieces pieces = Pieces::of_elements(extent, {&cast.quantized.bytes});
    Production production(cast, pieces);
    threads_.for_each(pieces.count(), [&](std::int64_t index) {
      const Piece piece = pieces.at(index);
      const std::int64_t begin = piece.row * extent.cols + piece.col;
      step_piece(kernels_, factors, tensor, begin, piece.extent.rows * piece.extent.cols);
      if (!cast.quantized.defined()) return;
      kernels_.cast->cast(Real::f32, piece.extent, {tensor.value.data<float>() + begin, extent.cols},
                          production.at(piece, Real::f32));
    });
    production.finish();
  }
}

/// Blocks of scales and tiles of copies are cut differently, so the copies are passes of their own.
void CpuBackend::step_stored(const StoredStep& stored, const AdamWTensor& tensor) {
  static_assert(kBlock % kMomentBlock == 0);
  threads_.for_blocks(tensor.value.elements(), kBlock,
                      [&](std::int64_t begin, std::int64_t end) { stored.run(begin, end); });
  const WeightCopies& copies = tensor.copies;
  if (copies.bf16) convert(tensor.value, copies.bf16);
  if (copies.fp8.defined()) cast(tensor.value, {{}, copies.fp8, copies.quantizer});
}

}  // namespace quaver
