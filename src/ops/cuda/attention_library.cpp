#include "ops/cuda/attention_library.h"

#include <string_view>

#include "base/check.h"

namespace quaver::cuda {
namespace {

bool suits(const AttentionMatrix& matrix) {
  return reinterpret_cast<std::uintptr_t>(matrix.data) % 16 == 0 && matrix.stride % 8 == 0;
}

bool suits(const AttentionShape& shape) {
  return shape.batch > 0 && shape.query_len > 0 && shape.query_len == shape.key_len &&
         shape.query_len % kLibraryLengths == 0 && shape.head_dim % 8 == 0 && shape.head_dim <= kWidestTile;
}

}  // namespace

bool suits_attention_library(const AttentionCall& call, const AttentionGradients* gradients) {
  if (call.dtype != DType::bf16 || call.first_key || !suits(call.shape)) return false;
  for (const AttentionMatrix& matrix : {call.q, call.k, call.v, call.out}) {
    if (!suits(matrix)) return false;
  }
  if (!gradients) return true;
  for (const AttentionMatrix& matrix : {gradients->dout, gradients->dq, gradients->dk, gradients->dv}) {
    if (!suits(matrix)) return false;
  }
  return call.lse != nullptr;
}

AttentionChoice attention_choice(const char* value) {
  const std::string_view choice = value ? value : "";
  if (choice.empty() || choice == "auto") return AttentionChoice::automatic;
  if (choice == "own") return AttentionChoice::own;
  if (choice == "cudnn") return AttentionChoice::library;
  fail(ErrorKind::usage, "QUAVER_ATTENTION is '{}', expected auto, own or cudnn", choice);
}

}  // namespace quaver::cuda
