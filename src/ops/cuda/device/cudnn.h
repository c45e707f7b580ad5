/// Attention by cuDNN, whose library is loaded when first needed.
#pragma once

#include <memory>
#include <string>

#include "ops/cuda/attention_library.h"
#include "ops/cuda/stream.h"

namespace quaver::cuda {

/// The library, or why there is none.
struct FoundAttention {
  std::unique_ptr<AttentionLibrary> library;
  std::string why_not;
};

/// Calls are queued on `stream`. Never throws for what is missing.
FoundAttention find_cudnn(DeviceStream stream);

/// What the environment variable QUAVER_ATTENTION asks for: cudnn (Error(usage) if it is missing), own (no library), else
/// cuDNN where it is found.
FoundAttention choose_attention(DeviceStream stream);

}  // namespace quaver::cuda
