/// Which stock architecture of Hugging Face transformers computes what a model computes, and config.json.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "quaver/model_config.h"
#include "quaver/tensor.h"

namespace quaver {

/// LlamaForCausalLM: ungated. Qwen3ForCausalLM: ungated, RMSNorm of the heads of q and k before the rotary
/// embedding. Qwen3_5ForCausalLM with full attention in all layers: the same, gated by a sigmoid.
enum class HfArchitecture { llama, qwen3, qwen3_5 };

/// "LlamaForCausalLM"
std::string class_name(HfArchitecture architecture);

/// The architecture that computes the same. Throws Error(usage), naming the key, when there is none.
HfArchitecture stock_architecture(const ModelConfig& config);

/// Rows of q_proj under a gate. `per_head`: the stock one, [query | gate] of each head in turn. `per_kv_group`:
/// that of the code published with arXiv 2505.06708, [queries | gates] of the heads of each key/value head.
enum class GateLayout { per_head, per_kv_group };

/// A gated or ungated model as config.json describes it.
struct HfModel {
  HfArchitecture architecture = HfArchitecture::llama;
  GateLayout gate_layout = GateLayout::per_head;
  /// As it will be in Quaver. Of a stock gated model the gate is elementwise: every head has head_dim rows.
  ModelConfig config;
};

/// Whether attention projections have biases; where Quaver's model has only some of them, the others are 0.
bool has_attention_bias(const ModelConfig& config);

/// config.json for a model of `stock_architecture(config)` whose weights are stored as `dtype`.
/// `document_token` begins and ends every document; negative: none.
std::string to_hf_config(const ModelConfig& config, DType dtype, std::int64_t document_token);

/// Reads config.json. Throws Error(data) naming `source` and the key for anything that Quaver has not, and for
/// keys it does not know (they may change the model), except those in `ignored`.
HfModel parse_hf_config(std::string_view text, const std::string& source, GateLayout layout,
                        std::span<const std::string> ignored = {});

}  // namespace quaver
