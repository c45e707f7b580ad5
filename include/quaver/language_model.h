/// The decoder-only transformer: embedding -> N blocks -> final norm -> lm_head.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
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

/// What one sequence of a batch adds to its cache.
struct CacheExtension {
  KvCache* cache = nullptr;  ///< not that of another sequence in the batch
  std::int64_t length = 0;   ///< tokens, at least 1; they stand at positions cache->length, ...
  std::int64_t logits = 1;   ///< for how many of these tokens, counted from the last, logits are wanted
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

  /// Logits [M, vocab] in the context's high precision. Runs under the Autocast scope the caller opened.
  Tensor forward(Context& context, const TokenBatch& tokens, Saved* saved);

  /// Continues cached sequences of any lengths, each by its own number of tokens: `tokens` i32[sum of lengths]
  /// holds those of the first sequence, then those of the second, ... Returns the wanted logits
  /// [sum of logits, vocab] in the same order. For evaluation. A sequence's logits do not depend on the others
  /// where a product's rows do not depend on how many there are: the `cpu` and `reference` backends.
  Tensor extend(Context& context, const Tensor& tokens, std::span<const CacheExtension> sequences);

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
  Tensor embed(Context& context, const TokenBatch& tokens);
  /// Final norm and lm_head.
  Tensor head(Context& context, const NormInput& x, Saved* saved);

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
