/// What the chips multiply: pure functions of the compute capability.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "ops/backend_facts.h"

namespace quaver::cuda {

/// Types of matrix products on a chip, `chip` = 10 * major + minor: 89 for compute capability 8.9.
std::vector<TypeFact> types_of_chip(int chip);

/// Whether FP8 operands need not be contiguous along the contraction.
bool takes_any_fp8_layout(int chip);

/// Whether FP8 products with FP32 sums run at half the rate outside blocks of 32.
bool doubles_in_blocks(int chip);

/// Why cuBLASLt of this version (cublasLtGetVersion) multiplies no operands with scales of blocks of 128 on a chip; empty: it does.
std::string why_no_block_products(int chip, std::size_t cublas_version);
/// Likewise of 32 with E8M0 scales (mxfp8); empty: it knows them, and its heuristic says for which operands it has algorithms.
std::string why_no_mx_products(int chip, std::size_t cublas_version);

}  // namespace quaver::cuda
