/// One transformer block: x1 = x + attention(norm(x));  x2 = x1 + mlp(norm(x1)).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "nn/attention.h"
#include "nn/feed_forward.h"
#include "quaver/norm.h"

namespace quaver {

/// The norm a config names.
std::unique_ptr<Norm> make_norm(Backend& backend, const ModelConfig& config);

struct BlockSaved {
  Norm::Saved attention_norm, mlp_norm;
  Attention::Saved attention;
  FeedForward::Saved mlp;

  /// The input and how to run forward again, instead of all the above: model.recompute = block.
  struct Again {
    TokenBatch tokens;
    Tensor x;
    ForwardRecord record;
  };
  std::optional<Again> again;

  /// Adds those scales that are still a slot's own (Linear::Saved::x_quantizer).
  void add_scales(std::vector<Tensor*>& scales);
};

class Block : public Module {
 public:
  Block(Backend& backend, const ModelConfig& config, const Rotary* rotary);
  /// x [M, width] -> [M, width]. The addition that ends a block is left to the norm that reads the result.
  NormInput forward(Context& context, const TokenBatch& tokens, const NormInput& x, BlockSaved* saved,
                    const CachedLayer* cached);
  /// Where the gradient of the block's output should be written: in high precision into `residual_gradient`, and as the feed-forward
  /// reads it, unless forward is to be run again first.
  Output make_output_gradient(Context& context, const BlockSaved& saved, const Tensor& residual_gradient);
  /// Turns the gradient of the block's output into that of its input, in place: in the forms that `make_input_gradient` asks
  /// for.
  void backward(Context& context, const BlockSaved& saved, Output& gradient,
                const std::function<Output()>& make_input_gradient);
  void visit(const std::string& name, ModuleVisitor& visitor) override;

 private:
  NormInput run(Context& context, const TokenBatch& tokens, const NormInput& x, BlockSaved* saved,
                const CachedLayer* cached);

  Backend& backend_;
  bool recomputes_;
  std::unique_ptr<Norm> attention_norm_, mlp_norm_;
  Attention attention_;
  FeedForward mlp_;
};

}  // namespace quaver
