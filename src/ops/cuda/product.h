/// Matrix products without a library: any sizes, strides and alignments; correct, not fast.
#pragma once

#include <string>
#include <vector>

#include "ops/cuda/device_backend.h"

namespace quaver::cuda {

/// Whether a factor of the product has scales of blocks.
bool is_in_blocks(const Product& product);

/// Elements along the contraction that share a scale, in both factors; 0 without blocks, or if they differ.
std::int64_t contraction_block(const Product& product);

/// Whether scales of blocks lie as cuBLASLt reads them, which knows no stride of them: on 16 bytes; those of single rows [k / 128, rows]
/// without gaps, so many rows a multiple of 4; those of 128 rows [rows / 128, k / 128], each row padded to a multiple of 4; tiles without
/// gaps. And both factors have blocks of one length, not both of 128 rows. True without blocks.
bool suits_library(const Product& product);

/// ", scales of 1 x 128 and 128 x 128" (left, right), for reports; empty without blocks.
std::string describe_blocks(const Product& product);

/// What a library must have algorithms for to multiply factors in blocks of 32: products as those of fprop, dgrad and wgrad, in the
/// layouts in which the backend hands them over. `memory`: in place of operands; aligned to 256 bytes.
std::vector<Product> mx_probes(bool any_layout, void* memory);

/// bias may be null.
void launch_plain_product(const Product& product, const float* bias, Stream stream);

}  // namespace quaver::cuda
