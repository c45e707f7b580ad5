/// A library's attention in place of our own kernels, where one is there and the call suits it.
///
/// Its tiles multiply what a row does not see by 0: unlike ours, a NaN or an infinity may reach earlier rows of the same
/// sequence.
#pragma once

#include <optional>
#include <string>

#include "ops/cuda/attention.h"

namespace quaver::cuda {

/// Calls take this: sequences shorter than a library's tile gain nothing, and a plan is made for every length.
constexpr std::int64_t kLibraryLengths = 128;

class AttentionLibrary {
 public:
  virtual ~AttentionLibrary() = default;
  // In its calls lse is packed: [batch, heads, query_len].
  /// Name and version; then, if it could not compute a call that suits, the last of those and why.
  virtual std::string describe() const = 0;
  /// Bytes of workspace of a call that suits (below); nothing: the library cannot compute it. The first call of its sizes
  /// and strides makes a plan: host work, nothing is queued. `gradients`: null of forward.
  virtual std::optional<std::int64_t> workspace(const AttentionCall& call,
                                                const AttentionGradients* gradients) = 0;
  /// Queues a call for which `workspace` gave bytes; they lie at `memory`.
  virtual void run(const AttentionCall& call, const AttentionGradients* gradients, void* memory) = 0;
};

/// Whether a library may be asked: BF16 heads of 8, 16, ... 128 elements whose rows lie on 16 bytes, whole sequences (as
/// many queries as keys) of a multiple of kLibraryLengths, no document borders, and in backward a lse of forward.
bool suits_attention_library(const AttentionCall& call, const AttentionGradients* gradients);

/// What QUAVER_ATTENTION says.
enum class AttentionChoice : std::uint8_t { automatic, own, library };
/// `value`: "", "auto", "own", "cudnn"; throws Error(usage) for anything else. null: automatic.
AttentionChoice attention_choice(const char* value);

}  // namespace quaver::cuda
