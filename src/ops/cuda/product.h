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

/// Whether a product with one scale per tensor can also be computed in blocks of 32 whose scales are all 1, and may be faster so on a chip
/// with such products.
bool takes_unit_scales(int chip, const Product& product);
/// Bytes 0x7F (1 in E8M0) that the factors' scales of blocks are read from.
std::int64_t unit_scale_bytes(const Product& product);
/// That product; the sum is to be multiplied by what `start_scale_product` writes.
Product with_unit_scales(const Product& product, const void* units);
/// Queues alpha[0] = the product of both tensors' scales.
void start_scale_product(const Product& product, float* alpha, DeviceStream stream);

/// bias and alpha, a factor of the sum, may be null.
void launch_plain_product(const Product& product, const float* bias, Stream stream,
                          const float* alpha = nullptr);

}  // namespace quaver::cuda
