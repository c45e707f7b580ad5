#include "ops/cuda/attention.h"
#include "ops/cuda/device_backend.h"

namespace quaver::cuda {
namespace {

AttentionMatrix matrix(const Tensor& tensor) {
  return {tensor.raw(), tensor.row_stride()};
}

AttentionCall call_of(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& first_key, const Tensor& out, const Tensor& lse, bool warpgroups) {
  AttentionCall call;
  call.warpgroups = warpgroups;
  call.shape = shape;
  call.dtype = q.dtype();
  call.q = matrix(q);
  call.k = matrix(k);
  call.v = matrix(v);
  if (first_key) call.first_key = first_key.data<std::int32_t>();
  call.out = matrix(out);
  if (!lse) return call;
  call.lse = lse.data<float>();
  call.lse_stride = lse.row_stride();
  return call;
}

}  // namespace

std::string DeviceBackend::describe() const {
  if (!attention_library_) return runtime_->describe();
  return runtime_->describe() + ", attention without document borders by " + attention_library_->describe();
}

bool DeviceBackend::attend_in_library(const AttentionCall& call, const AttentionGradients* gradients) {
  if (!attention_library_ || !suits_attention_library(call, gradients)) return false;
  const std::optional<std::int64_t> bytes = attention_library_->workspace(call, gradients);
  if (!bytes) return false;
  const Tensor workspace = allocate(DType::u8, {*bytes});
  const bool backward = gradients != nullptr;
  const AttentionGradients g = backward ? *gradients : AttentionGradients{};
  const auto start = [library = attention_library_.get(), call, g, backward, memory = workspace.raw()] {
    library->run(call, backward ? &g : nullptr, memory);
  };
  const AttentionShape& s = call.shape;
  const auto with = [&](const auto&... values) {
    queue_.add("attention_library", start, s.batch, s.query_len, s.heads, s.kv_heads, s.head_dim, s.scale,
               backward, call.lse, call.lse_stride, workspace.raw(), values...);
  };
  // Matrices have no padding: they compare by their bytes.
  with(call.q, call.k, call.v, call.out, g.dout, g.dq, g.dk, g.dv);
  return true;
}

void DeviceBackend::attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& first_key, const Tensor& out, const Tensor& lse) {
  check_attention(shape, q, k, v, first_key, out, lse);
  const AttentionCall call = call_of(shape, q, k, v, first_key, out, lse, runtime_->has_warpgroup_products());
  if (!attend_in_library(call, nullptr)) launch_attention(call, stream());
}

void DeviceBackend::attention_backward(const AttentionShape& shape, const Tensor& dout, const Tensor& q,
                                       const Tensor& k, const Tensor& v, const Tensor& first_key,
                                       const Tensor& out, const Tensor& lse, const Tensor& dq,
                                       const Tensor& dk, const Tensor& dv) {
  check_attention_backward(shape, dout, q, k, v, first_key, out, lse, dq, dk, dv);
  const AttentionCall call = call_of(shape, q, k, v, first_key, out, lse, runtime_->has_warpgroup_products());
  AttentionGradients gradients{matrix(dout), matrix(dq), matrix(dk), matrix(dv)};
  if (attend_in_library(call, &gradients)) return;
  const Tensor workspace = allocate(DType::u8, {attention_workspace(shape)});
  gradients.workspace = workspace.raw();
  launch_attention_backward(call, gradients, stream());
}

}  // namespace quaver::cuda
