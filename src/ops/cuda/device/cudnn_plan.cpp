#include "ops/cuda/device/cudnn_plan.h"

#include <bit>

namespace quaver::cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Tensor_attributes;
using TensorPointer = std::shared_ptr<Tensor_attributes>;

enum Operand : std::int64_t { kQ = 1, kK, kV, kOut, kLse, kDout, kDq, kDk, kDv };

/// A matrix [batch * len, heads * head_dim] as cuDNN sees it: batch, heads, len, head_dim.
Tensor_attributes heads_of(const AttentionShape& shape, std::int64_t heads, std::int64_t stride) {
  return Tensor_attributes()
      .set_data_type(fe::DataType_t::BFLOAT16)
      .set_dim({shape.batch, heads, shape.query_len, shape.head_dim})
      .set_stride({shape.query_len * stride, shape.head_dim, stride, 1});
}
Tensor_attributes queries(const AttentionShape& shape, const AttentionMatrix& matrix) {
  return heads_of(shape, shape.heads, matrix.stride);
}
Tensor_attributes keys(const AttentionShape& shape, const AttentionMatrix& matrix) {
  return heads_of(shape, shape.kv_heads, matrix.stride);
}
Tensor_attributes sums(const AttentionShape& shape) {
  return Tensor_attributes()
      .set_data_type(fe::DataType_t::FLOAT)
      .set_dim({shape.batch, shape.heads, shape.query_len, 1})
      .set_stride({shape.heads * shape.query_len, shape.query_len, 1, 1});
}

/// Gives a result of the graph its place in memory.
void write(const TensorPointer& result, const Tensor_attributes& layout, Operand operand) {
  result->set_output(true)
      .set_uid(operand)
      .set_data_type(layout.get_data_type())
      .set_dim(layout.get_dim())
      .set_stride(layout.get_stride());
}

void add_forward(fe::graph::Graph& graph, const AttentionCall& call) {
  const AttentionShape& shape = call.shape;
  const auto [out, lse] =
      graph.sdpa(graph.tensor(queries(shape, call.q).set_uid(kQ)),
                 graph.tensor(keys(shape, call.k).set_uid(kK)), graph.tensor(keys(shape, call.v).set_uid(kV)),
                 fe::graph::SDPA_attributes()
                     .set_name("attention")
                     .set_generate_stats(call.lse != nullptr)
                     .set_causal_mask(true)
                     .set_attn_scale(shape.scale));
  write(out, queries(shape, call.out), kOut);
  if (call.lse) write(lse, sums(shape), kLse);
}

void add_backward(fe::graph::Graph& graph, const AttentionCall& call, const AttentionGradients& gradients) {
  const AttentionShape& shape = call.shape;
  const auto [dq, dk, dv] = graph.sdpa_backward(
      graph.tensor(queries(shape, call.q).set_uid(kQ)), graph.tensor(keys(shape, call.k).set_uid(kK)),
      graph.tensor(keys(shape, call.v).set_uid(kV)), graph.tensor(queries(shape, call.out).set_uid(kOut)),
      graph.tensor(queries(shape, gradients.dout).set_uid(kDout)), graph.tensor(sums(shape).set_uid(kLse)),
      fe::graph::SDPA_backward_attributes()
          .set_name("attention_backward")
          .set_causal_mask(true)
          .set_attn_scale(shape.scale)
          .set_deterministic_algorithm(true));
  write(dq, queries(shape, gradients.dq), kDq);
  write(dk, keys(shape, gradients.dk), kDk);
  write(dv, keys(shape, gradients.dv), kDv);
}

}  // namespace

CudnnKey cudnn_key(const AttentionCall& call, const AttentionGradients* gradients) {
  const AttentionShape& shape = call.shape;
  CudnnKey key{gradients != nullptr,
               shape.batch,
               shape.query_len,
               shape.heads,
               shape.kv_heads,
               shape.head_dim,
               std::bit_cast<std::int32_t>(shape.scale),
               call.lse != nullptr,
               call.q.stride,
               call.k.stride,
               call.v.stride,
               call.out.stride};
  if (!gradients) return key;
  key[12] = gradients->dout.stride;
  key[13] = gradients->dq.stride;
  key[14] = gradients->dk.stride;
  key[15] = gradients->dv.stride;
  return key;
}

MadePlan make_cudnn_plan(cudnnHandle_t handle, const AttentionCall& call,
                         const AttentionGradients* gradients) {
  auto plan = std::make_unique<CudnnPlan>();
  plan->graph.set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  if (gradients) {
    add_backward(plan->graph, call, *gradients);
  } else {
    add_forward(plan->graph, call);
  }
  auto status = plan->graph.build(handle, {fe::HeurMode_t::A});
  if (status.is_good()) status = plan->graph.get_workspace_size(plan->workspace);
  if (status.is_bad()) return {nullptr, status.get_message()};
  return {std::move(plan), ""};
}

std::unordered_map<std::int64_t, void*> cudnn_operands(const AttentionCall& call,
                                                       const AttentionGradients* gradients) {
  std::unordered_map<std::int64_t, void*> operands{
      {kQ, call.q.data}, {kK, call.k.data}, {kV, call.v.data}, {kOut, call.out.data}};
  if (call.lse) operands.emplace(kLse, call.lse);
  if (!gradients) return operands;
  operands.emplace(kDout, gradients->dout.data);
  operands.emplace(kDq, gradients->dq.data);
  operands.emplace(kDk, gradients->dk.data);
  operands.emplace(kDv, gradients->dv.data);
  return operands;
}

}  // namespace quaver::cuda
