/// Gated causal self-attention with grouped queries (arXiv 2505.06708, gate at position G1):
///
///   q, k, v, g = projections(x);  q, k = rope/norm(q), rope/norm(k)
///   o = softmax(q k^T / sqrt(D)) v;  y = out_proj(o * act(g))
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "nn/rotary.h"
#include "quaver/backend.h"
#include "quaver/language_model.h"
#include "quaver/linear.h"
#include "quaver/model_config.h"
#include "quaver/module.h"

namespace quaver {

/// The caches that the attention of one layer extends.
struct CachedLayer {
  std::span<const CacheExtension> sequences;
  std::size_t layer = 0;
};

class Attention : public Module {
 public:
  /// `rotary` may be null (learned positions); it must outlive the module.
  Attention(Backend& backend, const ModelConfig& config, const Rotary* rotary);

  /// Columns of the projected input, which are slices of one matrix when packed: [q | k | v | gate].
  struct Projections {
    Tensor packed;  ///< absent when separate
    Tensor q, k, v, gate;
  };
  /// Where their gradients are written.
  struct Gradients {
    Output packed;  ///< absent when separate
    Output q, k, v, gate;
  };
  struct Saved {
    AttentionShape shape;
    Tensor positions, first_key;
    Linear::Saved qkv, q_proj, k_proj, v_proj, gate_proj, out_proj;
    Projections projected;
    Tensor q,
        k;  ///< after rope and norm; without a norm projected.q and projected.k, turned where they stood
    Tensor o, lse;  ///< with projected.gate backward also forms out_proj's input, where that was not kept

    /// The input and how to run forward again, instead of all the above: model.recompute = attention.
    struct Again {
      TokenBatch tokens;
      Output x;
      ForwardRecord record;
    };
    std::optional<Again> again;
  };

  /// Where the norm before the attention should write: every projection reads this one tensor.
  Output make_input(Context& context, std::int64_t rows);
  /// x as `make_input` described it -> [M, width]. With `cached`, the rows of x are those of its sequences one after
  /// the other.
  Tensor forward(Context& context, const TokenBatch& tokens, const Output& x, Saved* saved,
                 const CachedLayer* cached);
  /// Where the producer of dy should write it: in high precision into `values`, and as out_proj reads it, unless forward is to be
  /// run again first.
  Output make_output_gradient(Context& context, const Saved& saved, const Tensor& values);
  /// Writes dx from dy [M, width], whose values are there.
  void backward(Context& context, const Saved& saved, const Output& dy, const Tensor& dx);

  void visit(const std::string& name, ModuleVisitor& visitor) override;

 private:
  Linear& first_projection() { return qkv_proj_ ? *qkv_proj_ : *q_proj_; }
  Tensor run(Context& context, const TokenBatch& tokens, const Output& x, Saved* saved,
             const CachedLayer* cached);
  Projections slices(const Tensor& packed) const;
  Projections project(Context& context, const Output& x, Saved* saved);
  Gradients make_gradients(Context& context, const Saved& saved);
  /// Those of q, k and v, from the gradient of o.
  void attend_backward(const Saved& saved, const Tensor& d_o, const Gradients& gradients);
  void project_backward(Context& context, const Saved& saved, const Gradients& gradients, const Tensor& dx);
  AttentionShape shape_of(std::int64_t batch, std::int64_t query_len, std::int64_t key_len) const;
  /// Appends k and v to the caches, and attends to each sequence by itself.
  void attend_cached(const CachedLayer& cached, const Tensor& q, const Tensor& k, const Tensor& v,
                     const Tensor& o);
  bool transforms() const { return rotary_.cosine.defined() || config_.qk_norm != QkNorm::none; }
  /// q and k lie side by side and are transformed alike: as if they were one.
  bool transforms_as_one() const {
    return qkv_proj_ && rotary_.cosine.defined() && config_.qk_norm == QkNorm::none;
  }
  HeadTransform transform(std::int64_t heads, Parameter* gain) const;
  /// q and k of the projections.
  std::pair<Tensor, Tensor> transform_forward(const Projections& p, const Tensor& positions);
  void transform_backward(std::int64_t heads, Parameter* gain, const Tensor& dout, const Tensor& x,
                          const Tensor& positions, const Output& dx);

  Backend& backend_;
  ModelConfig config_;
  HeadTransform rotary_;  // the tables only
  std::int64_t q_columns_, kv_columns_, gate_columns_;
  std::unique_ptr<Linear> qkv_proj_;                              // packed
  std::unique_ptr<Linear> q_proj_, k_proj_, v_proj_, gate_proj_;  // separate
  std::unique_ptr<Parameter> q_gain_, k_gain_;
  std::unique_ptr<Linear> out_proj_;
};

}  // namespace quaver
