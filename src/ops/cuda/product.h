/// Matrix products without a library: any sizes, strides and alignments; correct, not fast.
#pragma once

#include "ops/cuda/device_backend.h"

namespace quaver::cuda {

/// bias may be null.
void launch_plain_product(const Product& product, const float* bias, Stream stream);

}  // namespace quaver::cuda
