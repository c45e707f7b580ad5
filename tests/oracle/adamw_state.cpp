/// AdamW on every form of its state behind a C interface, so that Python can compare it with numpy and ml_dtypes.
#include "quaver/backend.h"

using namespace quaver;

namespace {

Tensor load(Backend& backend, DType type, const void* from, std::int64_t count) {
  const Tensor tensor = backend.allocate(type, {count});
  backend.copy_from_host(from, tensor);
  return tensor;
}

DType type_of(int kind) {
  return kind == 0 ? DType::f32 : kind == 1 ? DType::bf16 : DType::e4m3;
}

}  // namespace

/// One step of `count` elements in place. Kinds: 0 f32, 1 bf16, 2 e4m3 with scales.
extern "C" void quaver_adamw(const char* backend_name, int value_kind, int moment_kind, std::int64_t count,
                             std::int64_t step, float lr, float weight_decay, std::uint64_t seed,
                             std::uint64_t noise_stream, const float* gradient, void* value, void* m, void* v,
                             float* m_scales, float* v_scales) {
  const auto backend = make_backend(backend_name, 2);
  const DType moments = type_of(moment_kind);
  const std::int64_t blocks = (count + kMomentBlock - 1) / kMomentBlock;
  AdamWTensor tensor{load(*backend, DType::f32, gradient, count),
                     load(*backend, type_of(value_kind), value, count), load(*backend, moments, m, count),
                     load(*backend, moments, v, count)};
  tensor.noise_stream = noise_stream;
  if (moments == DType::e4m3) {
    tensor.m_scales = load(*backend, DType::f32, m_scales, blocks);
    tensor.v_scales = load(*backend, DType::f32, v_scales, blocks);
  }
  const float norm = 1;
  backend->adamw({.lr = lr, .weight_decay = weight_decay, .step = step, .seed = seed},
                 load(*backend, DType::f32, &norm, 1), 0, {&tensor, 1});
  backend->copy_to_host(tensor.value, value);
  backend->copy_to_host(tensor.m, m);
  backend->copy_to_host(tensor.v, v);
  if (moments != DType::e4m3) return;
  backend->copy_to_host(tensor.m_scales, m_scales);
  backend->copy_to_host(tensor.v_scales, v_scales);
}
