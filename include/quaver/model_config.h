/// What a decoder-only transformer looks like: every number and choice of its architecture.
#pragma once

#include <cstdint>

namespace quaver {

enum class NormKind { rms, layer };
/// The attention gate: none, one per head and token, or one per element of every head.
enum class GateKind { none, headwise, elementwise };
enum class GateActivation { sigmoid, sigmoid2, silu };  ///< sigmoid2 = 2 sigmoid
/// RMSNorm of every head of q and k: not at all, or before or after the rotary embedding.
enum class QkNorm { none, pre_rope, post_rope };
enum class PositionKind { rope, learned };
/// What backward computes again instead of keeping it: nothing, the products with an activation or a gate, every attention, or
/// every block. Where there are no transposed copies, FP8 of those products (delayed scaling) is never kept.
enum class Recompute { none, gated, attention, block };
enum class Activation { swiglu, geglu, gelu };  ///< gelu has no gate operand

/// Largest values of the fields of ModelConfig: far above any model, and no product of sizes leaves 64 bits.
constexpr std::int64_t kMaxFeatures = std::int64_t{1} << 24;  ///< width, ffn_width, vocab, context
constexpr std::int64_t kMaxLayers = 4096;
constexpr std::int64_t kMaxHeads = 1024;  ///< and kv_heads
constexpr std::int64_t kMaxHeadDim = 1024;

/// The architecture. The defaults are those of a small modern model; a run file may set every field under
/// [model].
struct ModelConfig {
  std::int64_t width = 192;      ///< features of the residual stream
  std::int64_t layers = 4;       ///< blocks
  std::int64_t heads = 6;        ///< query heads; need not multiply to `width`
  std::int64_t kv_heads = 2;     ///< key/value heads, a divisor of `heads`; grouped queries when smaller
  std::int64_t head_dim = 32;    ///< features of one head
  std::int64_t ffn_width = 512;  ///< hidden features of the feed-forward
  std::int64_t vocab = 257;      ///< token ids are in [0, vocab); 257 for byte tokens
  std::int64_t context = 256;    ///< sequence length of training, and positions the model knows

  NormKind norm = NormKind::rms;
  float norm_epsilon = 1e-6f;  ///< of all norms, qk_norm included

  bool packed_qkv = true;  ///< one GEMM for q, k, v and gate (TOML: qkv = "packed"), or one each ("separate")
  GateKind gate = GateKind::elementwise;
  GateActivation gate_activation = GateActivation::sigmoid;
  bool gate_bias = false;    ///< whether the attention gate's projection has a bias
  float gate_bias_init = 0;  ///< its initial value
  QkNorm qk_norm = QkNorm::none;

  PositionKind position = PositionKind::rope;
  float rope_theta = 10000;  ///< base of the rotary frequencies
  float rope_fraction = 1;   ///< share of every head that is rotated; times head_dim a positive even number

  Activation mlp = Activation::swiglu;
  /// One GEMM for the feed-forward's gate and up (TOML: gate_up = "packed"), or one each ("separate"). gelu has but one.
  bool packed_gate_up = false;
  Recompute recompute = Recompute::none;  ///< for memory; changes no bit of any result

  bool qkv_bias = false;   ///< biases of q, k and v
  bool out_bias = false;   ///< bias of the attention's out_proj
  bool mlp_bias = false;   ///< biases of the feed-forward's projections
  bool head_bias = false;  ///< bias of lm_head

  bool tie_embeddings = true;  ///< lm_head shares the embedding's weight
  /// Of initial weights; divided by sqrt(2 * layers) for those that write to the residual stream.
  float init_std = 0.02f;

  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

/// Throws Error(usage) for the first field that does not fit. The message begins with the field's name in a
/// run file and a colon ("model.kv_heads: expected ..., found ...").
void validate(const ModelConfig& config);

/// Features of the attention gate's projection: 0, heads, or heads * head_dim.
std::int64_t gate_features(const ModelConfig& config);

/// Projections of the feed-forward's input: 2, or 1 where the activation has no gate operand.
std::int64_t feed_forward_inputs(const ModelConfig& config);
/// Whether there are two, as one GEMM.
bool packs_gate_up(const ModelConfig& config);

/// Elements of all parameters; a tied lm_head counts once.
std::int64_t parameter_count(const ModelConfig& config);

}  // namespace quaver
