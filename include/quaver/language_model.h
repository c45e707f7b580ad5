/// The decoder-only transformer: embedding -> N blocks -> final norm -> lm_head.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "quaver/autocast.h"
#include "quaver/linear.h"
#include "quaver/model_config.h"
#include "quaver/module.h"
#include "quaver/norm.h"

namespace quaver {

class Rotary;
class Block;
struct BlockSaved;

/// Token positions of `batch` sequences of `length` each, flattened to M = batch * length rows. All i32[M] on
/// the device.
struct TokenBatch {
  std::int64_t batch = 0, length = 0;
  Tensor tokens;
  Tensor positions;  ///< position of each token in its window, below model.context
  Tensor first_key;  ///< first position each token may attend to; absent: 0
};

/// Keys and values of one growing sequence, for generation. Holds up to `capacity` positions.
struct KvCache {
  struct Layer {
    Tensor keys, values;  ///< [capacity, kv_heads * head_dim]
  };
  std::vector<Layer> layers;
  std::int64_t length = 0, capacity = 0;
};

class LanguageModel : public Module {
 public:
  /// Parameters are initialised from `seed`: matrices normal(0, init_std), those that write to the residual
  /// stream divided by sqrt(2 * layers), gains 1, biases 0, gate biases config.gate_bias_init. Throws
  /// Error(usage) for an invalid config.
  LanguageModel(std::shared_ptr<Backend> backend, const ModelConfig& config, std::uint64_t seed);
  ~LanguageModel() override;

  struct Saved {
    TokenBatch tokens;
    std::vector<std::unique_ptr<BlockSaved>> blocks;
    Norm::Saved final_norm;
    Linear::Saved lm_head;
    Saved();
    ~Saved();
    Saved(Saved&&) noexcept;
    Saved& operator=(Saved&&) noexcept;
  };

  /// Logits [M, vocab] in the context's high precision. Runs under the Autocast scope the caller opened. With
  /// a cache (batch 1) the tokens continue the sequence in it, and positions must start at cache->length.
  Tensor forward(Context& context, const TokenBatch& tokens, Saved* saved, KvCache* cache = nullptr);

  /// Where cross entropy writes the gradient of the logits.
  Output make_logits_gradient(Context& context, const Saved& saved);
  /// Accumulates all parameter gradients. Call inside a BackwardPass. Frees each block's saved tensors as it
  /// goes.
  void backward(Context& context, Saved& saved, const Output& dlogits);

  KvCache make_cache(std::int64_t capacity, DType dtype);

  void visit(const std::string& name, ModuleVisitor& visitor) override;
  const ModelConfig& config() const { return config_; }
  Backend& backend() { return *backend_; }

 private:
  std::shared_ptr<Backend> backend_;
  ModelConfig config_;
  std::shared_ptr<Parameter> embedding_;
  std::unique_ptr<Parameter> position_embedding_;  // learned positions only
  std::unique_ptr<Rotary> rotary_;                 // rotary positions only
  std::vector<std::unique_ptr<Block>> blocks_;
  std::unique_ptr<Norm> final_norm_;
  std::unique_ptr<Linear> lm_head_;
};

}  // namespace quaver
