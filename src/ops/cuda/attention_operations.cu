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

void DeviceBackend::attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& first_key, const Tensor& out, const Tensor& lse) {
  check_attention(shape, q, k, v, first_key, out, lse);
  launch_attention(call_of(shape, q, k, v, first_key, out, lse, runtime_->has_warpgroup_products()),
                   stream());
}

void DeviceBackend::attention_backward(const AttentionShape& shape, const Tensor& dout, const Tensor& q,
                                       const Tensor& k, const Tensor& v, const Tensor& first_key,
                                       const Tensor& out, const Tensor& lse, const Tensor& dq,
                                       const Tensor& dk, const Tensor& dv) {
  check_attention_backward(shape, dout, q, k, v, first_key, out, lse, dq, dk, dv);
  const Tensor workspace = allocate(DType::u8, {attention_workspace(shape)});
  launch_attention_backward(call_of(shape, q, k, v, first_key, out, lse, runtime_->has_warpgroup_products()),
                            {matrix(dout), matrix(dq), matrix(dk), matrix(dv), workspace.raw()}, stream());
}

}  // namespace quaver::cuda
