#include "ops/cpu/stored_step.h"

#include <algorithm>

#include "ops/cpu/levels.h"
#include "ops/cpu/work.h"
#include "ops/step_noise.h"

namespace quaver::cpu {
namespace {

constexpr std::int64_t kChunk = 1024;
static_assert(kChunk % kMomentBlock == 0);

}  // namespace

struct StoredStep::Chunk {
  std::int64_t begin, count;
};

StoredStep::StoredStep(const Kernels& kernels, const AdamWFactors& factors, const AdamWStep& step,
                       const AdamWTensor& tensor)
    : kernels_(kernels),
      factors_(factors),
      tensor_(tensor),
      value_{tensor.value, {}, step_noise(step, tensor, StepArray::value)},
      m_{tensor.m, tensor.m_scales, step_noise(step, tensor, StepArray::m)},
      v_{tensor.v, tensor.v_scales, step_noise(step, tensor, StepArray::v), true},
      format_(code_format_of(DType::e4m3)),
      numbers_(decode_table_of(DType::e4m3)) {}

bool StoredStep::is_plain(const AdamWTensor& tensor) {
  return tensor.value.dtype() == DType::f32 && tensor.m.dtype() == DType::f32;
}

void StoredStep::run(std::int64_t begin, std::int64_t end) const {
  float value[kChunk], first[kChunk], second[kChunk];
  for (std::int64_t at = begin; at < end; at += kChunk) {
    const Chunk chunk{at, std::min(kChunk, end - at)};
    float *const w = widen(value_, chunk, value), *const m = widen(m_, chunk, first),
                 *const v = widen(v_, chunk, second);
    kernels_.adamw->step(factors_, chunk.count, tensor_.gradient.data<float>() + at, w, m, v);
    store(value_, chunk, w);
    store(m_, chunk, m);
    store(v_, chunk, v);
  }
}

float* StoredStep::widen(const Array& array, const Chunk& chunk, float* scratch) const {
  if (array.data.dtype() == DType::f32) return array.data.data<float>() + chunk.begin;
  if (array.data.dtype() == DType::bf16) {
    kernels_.block_cast->widen(Real::bf16, array.data.data<bf16>() + chunk.begin, chunk.count, scratch);
    return scratch;
  }
  for (std::int64_t i = 0; i < chunk.count; i += kMomentBlock) {
    const std::int64_t at = chunk.begin + i;
    kernels_.adamw->decode(numbers_.data(), array.scales.data<float>()[at / kMomentBlock], array.roots,
                           array.data.data<std::uint8_t>() + at, std::min(kMomentBlock, chunk.count - i),
                           scratch + i);
  }
  return scratch;
}

void StoredStep::store(const Array& array, const Chunk& chunk, float* values) const {
  if (array.data.dtype() == DType::f32) return;
  float scratch[kChunk + kUniformSlack];
  const float* const uniforms = kernels_.block_cast->uniform(
      array.noise.seed, array.noise.stream, static_cast<std::uint64_t>(chunk.begin), chunk.count, scratch);
  if (array.data.dtype() == DType::bf16) {
    kernels_.adamw->round_bf16(values, uniforms, chunk.count, array.data.data<std::uint16_t>() + chunk.begin);
  } else {
    store_codes(array, chunk, values, uniforms);
  }
}

void StoredStep::store_codes(const Array& array, const Chunk& chunk, float* values,
                             const float* uniforms) const {
  if (array.roots) kernels_.adamw->take_roots(values, chunk.count);
  float multipliers[kMomentBlock];
  CodeCounts uncounted;
  for (std::int64_t i = 0; i < chunk.count; i += kMomentBlock) {
    const std::int64_t at = chunk.begin + i, count = std::min(kMomentBlock, chunk.count - i);
    std::uint8_t* const codes = array.data.data<std::uint8_t>() + at;
    const float amax = kernels_.adamw->amax(values + i, count, kLeastMomentAmax);
    std::fill_n(multipliers, count, format_.largest / amax);
    kernels_.block_cast->encode(format_, values + i, multipliers, uniforms + i, count, codes, uncounted);
    if (array.roots) kernels_.adamw->keep_positive(values + i, count, codes);
    array.scales.data<float>()[at / kMomentBlock] = amax / format_.largest;
  }
}

}  // namespace quaver::cpu
