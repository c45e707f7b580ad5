#include <cstdlib>

#include "base/check.h"
#include "ops/cuda/device/cudnn.h"

namespace quaver::cuda {

FoundAttention choose_attention(DeviceStream stream) {
  const AttentionChoice choice = attention_choice(std::getenv("QUAVER_ATTENTION"));
  if (choice == AttentionChoice::own) return {nullptr, "QUAVER_ATTENTION=own"};
  FoundAttention found = find_cudnn(stream);
  require(choice != AttentionChoice::library || found.library,
          "QUAVER_ATTENTION is cudnn, but {}; unset it for Quaver's own kernels", found.why_not);
  return found;
}

}  // namespace quaver::cuda
