/// The part of attention that is compiled once per instruction-set level: one block of queries against all
/// its keys, and the backward pass of one key/value head. Scratch is passed in; sizes are numbers of floats,
/// memory is 64-byte aligned.
#pragma once

#include <cstdint>

#include "ops/cpu/kernels/gemm.h"

namespace quaver::cpu {

constexpr std::int64_t kQueryBlock = 64;
constexpr std::int64_t kKeyBlock = 96;

/// A [positions, head_dim] matrix of one head of one sequence: bf16 or f32.
struct HeadMatrix {
  void* data = nullptr;
  std::int64_t stride = 0;
};

/// What all heads of one sequence share. Query i stands at key position key_len - query_len + i.
struct AttentionSequence {
  Element element = Element::f32;
  std::int64_t query_len = 0, key_len = 0, head_dim = 0;
  float scale = 0;
  const std::int32_t* first_key = nullptr;  ///< [query_len] or null
  std::int64_t lse_stride = 0;              ///< between the queries of one head
};

struct AttentionHead {
  HeadMatrix q, out;
  HeadMatrix k, v;       ///< of its key/value head; read only where they are not finite
  float* lse = nullptr;  ///< may be null in forward
};

struct AttentionHeadBackward {
  AttentionHead head;
  HeadMatrix dout, dq;
  const float*
      packed;  ///< keys and values of its key/value head, as `pack` of the backward kernels wrote them
  float* dk;   ///< sums of this head alone: gradient_size numbers, written
  float* dv;
};

struct AttentionBackwardKernels {
  std::int64_t (*packed_size)(const AttentionSequence& sequence);
  void (*pack)(const AttentionSequence& sequence, const HeadMatrix& k, const HeadMatrix& v, float* packed);
  std::int64_t (*gradient_size)(const AttentionSequence& sequence);
  std::int64_t (*scratch)(const AttentionSequence& sequence);
  void (*backward)(const AttentionSequence& sequence, const AttentionHeadBackward& head, float* scratch);
  /// to = the sum of `heads` consecutive gradients, in ascending order; destroys the first.
  void (*sum_heads)(const AttentionSequence& sequence, float* gradients, std::int64_t heads,
                    const HeadMatrix& to);
};

/// One query over keys and values that are read where they stand: packing them for every token of a cached sequence would
/// cost several times what reading them does. BF16, and every key is seen; the bits are those of AttentionKernels::forward.
struct OneQueryKernels {
  std::int64_t heads;  ///< that one call takes, at most
  std::int64_t (*scratch)(const AttentionSequence& sequence);
  /// `heads` query heads that share keys and values: head.q, head.out and head.lse have a row for each.
  void (*forward)(const AttentionSequence& sequence, const AttentionHead& head, std::int64_t heads,
                  float* scratch);
};

struct AttentionKernels {
  /// The packed keys and values of one key/value head: two halves of the work, for two threads.
  std::int64_t (*packed_size)(const AttentionSequence& sequence);
  void (*pack_keys)(const AttentionSequence& sequence, const HeadMatrix& k, float* packed);
  void (*pack_values)(const AttentionSequence& sequence, const HeadMatrix& v, float* packed);
  /// Queries [begin, end), at most kQueryBlock, of one head.
  std::int64_t (*forward_scratch)(const AttentionSequence& sequence);
  void (*forward)(const AttentionSequence& sequence, const AttentionHead& head, const float* packed,
                  std::int64_t begin, std::int64_t end, float* scratch);
  const OneQueryKernels* one_query;  ///< null at levels that pack all keys and values
  const AttentionBackwardKernels* backward;
};

namespace baseline {
extern const AttentionKernels attention_kernels;
}
namespace avx2 {
extern const AttentionKernels attention_kernels;
}
namespace avx512 {
extern const AttentionKernels attention_kernels;
}
namespace amx {
extern const AttentionKernels attention_kernels;  ///< BF16 alone
}

}  // namespace quaver::cpu
