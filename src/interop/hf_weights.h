/// Weights between Quaver's names and layouts and those of Hugging Face's architectures.
#pragma once

#include "interop/hf_config.h"
#include "interop/model_arrays.h"

namespace quaver {

/// From `read_parameters` to the arrays of `stock_architecture(config)`.
///
/// Qwen3.5 stores gains as gain - 1 and computes with 1 + that: exact for gains >= 0.5, and within 2^-25
/// otherwise. Gates with one row a head get head_dim equal rows; sigmoid2 is folded into o_proj (a factor of
/// 2).
FloatArrays to_hf_weights(const ModelConfig& config, FloatArrays arrays);

/// The opposite, for `write_parameters`. Takes the arrays that the architecture has out of `arrays`; what is
/// left over, is missing or has another shape is an Error(data). A tied lm_head may be there if it equals the
/// embedding.
FloatArrays from_hf_weights(const HfModel& model, FloatArrays arrays);

/// Elementwise gates whose rows are equal in every head, as `to_hf_weights` writes headwise ones, back to one
/// row a head. Throws Error(data) when rows differ.
void make_gates_headwise(const ModelConfig& config, FloatArrays& arrays);

}  // namespace quaver
