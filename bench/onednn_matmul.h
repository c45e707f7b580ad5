/// oneDNN's BF16 matmul as a yardstick, when the build found oneDNN.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "quaver/backend.h"

namespace quaver {

/// Sets the number of OpenMP threads; restarts the program once with OMP_WAIT_POLICY=passive, so that oneDNN's
/// threads do not spin while others are measured.
void prepare_onednn(char** argv, int threads);
std::string onednn_description();

/// One product with the layouts and types of Backend::gemm (BF16 operands; BF16 out, FP32 for wgrad), or
/// nothing without oneDNN.
std::function<void()> onednn_matmul(Gemm kind, std::int64_t m, std::int64_t k, std::int64_t n);

}  // namespace quaver
