/// One call's plan: cuDNN's graph of a shape, its strides, and the direction.
#pragma once

#include <cudnn_frontend.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "ops/cuda/attention_library.h"

namespace quaver::cuda {

/// Everything that a plan depends on; equal keys share one.
using CudnnKey = std::array<std::int64_t, 16>;
CudnnKey cudnn_key(const AttentionCall& call, const AttentionGradients* gradients);

struct CudnnPlan {
  cudnn_frontend::graph::Graph graph;
  std::int64_t workspace = 0;
};

/// A plan, or why cuDNN has none for the call on this chip.
struct MadePlan {
  std::unique_ptr<CudnnPlan> plan;
  std::string why_not;
};
MadePlan make_cudnn_plan(cudnnHandle_t handle, const AttentionCall& call,
                         const AttentionGradients* gradients);

/// The call's memory by the names that its plan gave to it.
std::unordered_map<std::int64_t, void*> cudnn_operands(const AttentionCall& call,
                                                       const AttentionGradients* gradients);

}  // namespace quaver::cuda
