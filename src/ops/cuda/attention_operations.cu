#include "ops/cuda/attention.h"
#include "ops/cuda/device_backend.h"
#include "ops/cuda/matrix.cuh"

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

constexpr int kSumsThreads = 256;
/// A library's deterministic backward may want gigabytes, which a training run needs for its activations.
constexpr std::int64_t kMostWorkspace = std::int64_t{512} << 20;

/// Where element i of [batch, heads, queries] lies in [batch * queries, heads].
__device__ inline std::int64_t place_in_rows(std::int64_t i, std::int64_t stride, std::int64_t heads,
                                             std::int64_t queries) {
  const std::int64_t head = i / queries % heads, sequence = i / queries / heads;
  return (sequence * queries + i % queries) * stride + head;
}

template <bool kPack>
__global__ void __launch_bounds__(kSumsThreads)
    move_sums(float* rows, std::int64_t stride, float* packed, std::int64_t heads, std::int64_t queries,
              std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float& row = rows[place_in_rows(i, stride, heads, queries)];
  if constexpr (kPack) {
    packed[i] = row;
  } else {
    row = packed[i];
  }
}

}  // namespace

std::string DeviceBackend::describe() const {
  if (!attention_library_) return runtime_->describe();
  return runtime_->describe() + ", attention without document borders by " + attention_library_->describe();
}

bool DeviceBackend::attend_in_library(const AttentionCall& call, const AttentionGradients* gradients) {
  if (!attention_library_ || !suits_attention_library(call, gradients)) return false;
  const std::optional<std::int64_t> bytes = attention_library_->workspace(call, gradients);
  if (!bytes || *bytes > kMostWorkspace) return false;
  const AttentionShape& s = call.shape;
  const bool backward = gradients != nullptr;
  const Tensor workspace = allocate(DType::u8, {*bytes});
  const Tensor packed = call.lse ? allocate(DType::f32, {s.batch, s.heads, s.query_len}) : Tensor();
  const auto move = [&](auto kernel) {
    launch("attention_sums", kernel, {blocks_for(packed.elements(), kSumsThreads), kSumsThreads}, stream(),
           call.lse, call.lse_stride, packed.data<float>(), s.heads, s.query_len, packed.elements());
  };
  if (backward) move(move_sums<true>);
  AttentionCall of_library = call;
  of_library.lse = call.lse ? packed.data<float>() : nullptr;
  const AttentionGradients g = backward ? *gradients : AttentionGradients{};
  const auto start = [library = attention_library_.get(), of_library, g, backward, memory = workspace.raw()] {
    library->run(of_library, backward ? &g : nullptr, memory);
  };
  // Matrices have no padding: they compare by their bytes.
  queue_.add("attention_library", start, s.batch, s.query_len, s.heads, s.kv_heads, s.head_dim, s.scale,
             backward, of_library.lse, workspace.raw(), call.q, call.k, call.v, call.out, g.dout, g.dq, g.dk,
             g.dv);
  if (!backward && call.lse) move(move_sums<false>);
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
  const Tensor workspace = allocate(DType::u8, {attention_workspace(call)});
  gradients.workspace = workspace.raw();
  launch_attention_backward(call, gradients, stream());
}

}  // namespace quaver::cuda
