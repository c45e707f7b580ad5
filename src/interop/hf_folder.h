/// The weights of a Hugging Face model folder: model.safetensors, or shards with an index.
#pragma once

#include <cstdint>
#include <string>

#include "interop/model_arrays.h"

namespace quaver {

/// Writes `arrays` as `dtype` (f32, or bf16 rounded to nearest even). More than `shard_bytes` bytes are cut
/// into model-00001-of-0000N.safetensors, ... and model.safetensors.index.json; an array is never cut.
void write_hf_weights(const std::string& folder, const FloatArrays& arrays, DType dtype,
                      std::uint64_t shard_bytes);

/// Reads F32 and BF16 arrays (exactly). Throws Error(data) for other types, for an index that does not say
/// what the shards hold, and for shards that lie outside the folder.
FloatArrays read_hf_weights(const std::string& folder);

}  // namespace quaver
