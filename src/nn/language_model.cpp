#include "quaver/language_model.h"

#include <cmath>

#include "base/check.h"
#include "base/random.h"
#include "nn/block.h"
#include "nn/recompute.h"
#include "nn/rotary.h"
#include "tensor/shape_text.h"

namespace quaver {
namespace {

/// Fills every parameter by its name, so that a value depends on the seed and the name alone.
class Initializer : public ModuleVisitor {
 public:
  Initializer(Backend& backend, const ModelConfig& config, std::uint64_t seed)
      : backend_(backend), config_(config), seed_(seed) {}

  void parameter(const std::string& name, Parameter& parameter) override {
    if (name.ends_with(".gain")) {
      backend_.fill(parameter.value, 1);
    } else if (name.ends_with(".bias")) {
      backend_.fill(parameter.value, 0);
    } else {
      const bool writes_residual = name.ends_with("out_proj.weight") || name.ends_with("down_proj.weight");
      const float depth = writes_residual ? std::sqrt(2.0f * static_cast<float>(config_.layers)) : 1.0f;
      backend_.fill_normal(parameter.value, 0, config_.init_std / depth, seed_, stable_hash(name));
    }
    if (name.ends_with("attention.gate_proj.bias")) backend_.fill(parameter.value, config_.gate_bias_init);
    if (name.ends_with("attention.qkv_proj.bias") && config_.gate_bias)
      fill_packed_gate_bias(parameter.value);
  }

 private:
  void fill_packed_gate_bias(const Tensor& bias) {
    const std::int64_t gate = gate_features(config_);
    if (gate > 0) backend_.fill(bias.slice(bias.elements() - gate, gate), config_.gate_bias_init);
  }

  Backend& backend_;
  const ModelConfig& config_;
  std::uint64_t seed_;
};

/// The last rows of every sequence, as many as it wants logits of: `count` in all.
Tensor rows_with_logits(Backend& backend, const NormInput& x, std::span<const CacheExtension> sequences,
                        std::int64_t count) {
  if (x.addend) backend.add(x.x, x.addend, x.sum);
  const Tensor& all = x.normed();
  const Tensor wanted = backend.allocate(all.dtype(), {count, all.cols()});
  std::int64_t row = 0, out = 0;
  for (const CacheExtension& sequence : sequences) {
    row += sequence.length;
    if (sequence.logits == 0) continue;
    backend.copy(all.slice(row - sequence.logits, sequence.logits), wanted.slice(out, sequence.logits));
    out += sequence.logits;
  }
  return wanted;
}

}  // namespace

LanguageModel::Saved::Saved() = default;
LanguageModel::Saved::~Saved() = default;
LanguageModel::Saved::Saved(Saved&&) noexcept = default;
LanguageModel::Saved& LanguageModel::Saved::operator=(Saved&&) noexcept = default;

LanguageModel::LanguageModel(std::shared_ptr<Backend> backend, const ModelConfig& config, std::uint64_t seed)
    : backend_(std::move(backend)), config_(config) {
  validate(config);
  Backend& ops = *backend_;
  embedding_ = std::make_shared<Parameter>(ops, Shape{config.vocab, config.width});
  if (config.position == PositionKind::learned) {
    position_embedding_ = std::make_unique<Parameter>(ops, Shape{config.context, config.width});
  } else {
    rotary_ = std::make_unique<Rotary>(ops, config.context, config.head_dim, config.rope_theta,
                                       config.rope_fraction);
  }
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    blocks_.push_back(std::make_unique<Block>(ops, config, rotary_.get()));
  }
  final_norm_ = make_norm(ops, config);
  lm_head_ = std::make_unique<Linear>(
      ops, Linear::Options{config.width, config.vocab, 0, config.head_bias ? config.vocab : 0},
      config.tie_embeddings ? embedding_ : nullptr);
  Initializer initializer(ops, config_, seed);
  visit("", initializer);
}

LanguageModel::~LanguageModel() = default;

Tensor LanguageModel::embed(Context& context, const TokenBatch& tokens) {
  const Tensor x =
      backend_->allocate(context.high_precision(), {tokens.batch * tokens.length, config_.width});
  backend_->embedding(tokens.tokens, embedding_->value, position_embedding_ ? tokens.positions : Tensor(),
                      position_embedding_ ? position_embedding_->value : Tensor(), x);
  return x;
}

Tensor LanguageModel::head(Context& context, const NormInput& x, Saved* saved) {
  const Output head_in = lm_head_->make_input(context, x.x.rows());
  final_norm_->forward(x, head_in, saved ? &saved->final_norm : nullptr);
  return lm_head_->forward(context, head_in, saved ? &saved->lm_head : nullptr);
}

Tensor LanguageModel::forward(Context& context, const TokenBatch& tokens, Saved* saved) {
  const std::int64_t rows = tokens.batch * tokens.length;
  require(tokens.tokens.shape() == Shape{rows}, "model: expected {} x {} tokens, found shape {}",
          tokens.batch, tokens.length, ShapeText{tokens.tokens.shape()});
  require(tokens.length <= config_.context, "model: {} positions exceed model.context = {}", tokens.length,
          config_.context);
  NormInput x = embed(context, tokens);
  std::vector<Tensor*> scales;
  for (const auto& block : blocks_) {
    auto block_saved = saved ? std::make_unique<BlockSaved>() : nullptr;
    x = block->forward(context, tokens, x, block_saved.get(), nullptr);
    if (!saved) continue;
    block_saved->add_scales(scales);
    saved->blocks.push_back(std::move(block_saved));
  }
  keep_scales(*backend_, scales);
  if (saved) saved->tokens = tokens;
  return head(context, x, saved);
}

Tensor LanguageModel::extend(Context& context, const Tensor& tokens,
                             std::span<const CacheExtension> sequences) {
  std::vector<std::int32_t> positions;
  std::int64_t logit_rows = 0;
  for (const CacheExtension& sequence : sequences) {
    const std::int64_t begin = sequence.cache->length, end = begin + sequence.length;
    require(sequence.length >= 1 && sequence.logits >= 0 && sequence.logits <= sequence.length,
            "model: {} tokens with {} rows of logits extend a cached sequence", sequence.length,
            sequence.logits);
    require(end <= config_.context && end <= sequence.cache->capacity,
            "model: {} positions exceed model.context = {} or the cache's capacity {}", end, config_.context,
            sequence.cache->capacity);
    for (std::int64_t at = begin; at < end; ++at) positions.push_back(static_cast<std::int32_t>(at));
    logit_rows += sequence.logits;
  }
  const auto rows = static_cast<std::int64_t>(positions.size());
  require(rows > 0, "model: no sequence to extend");
  require(tokens.shape() == Shape{rows}, "model: expected {} tokens, found shape {}", rows,
          ShapeText{tokens.shape()});

  const TokenBatch batch{1, rows, tokens, upload(*backend_, positions, {rows}), {}};
  NormInput x = embed(context, batch);
  CachedLayer cached{sequences, 0};
  for (const auto& block : blocks_) {
    x = block->forward(context, batch, x, nullptr, &cached);
    ++cached.layer;
  }
  for (const CacheExtension& sequence : sequences) sequence.cache->length += sequence.length;
  if (logit_rows == 0) return backend_->allocate(context.high_precision(), {0, config_.vocab});
  if (logit_rows == rows) return head(context, x, nullptr);
  return head(context, rows_with_logits(*backend_, x, sequences, logit_rows), nullptr);
}

Output LanguageModel::make_logits_gradient(Context& context, const Saved& saved) {
  return lm_head_->make_output_gradient(context, saved.lm_head);
}

void LanguageModel::backward(Context& context, Saved& saved, const Output& dlogits) {
  const std::int64_t rows = saved.tokens.batch * saved.tokens.length;
  const DType dtype = context.high_precision();
  const Tensor dnorm = backend_->allocate(dtype, {rows, config_.width});
  lm_head_->backward(context, saved.lm_head, dlogits, dnorm);
  const Tensor residual_gradient = backend_->allocate(dtype, {rows, config_.width});
  // Of the residual stream above `layers` blocks.
  const auto make_gradient = [&](std::size_t layers) {
    if (layers == 0) return Output{residual_gradient, {}, {}};
    return blocks_[layers - 1]->make_output_gradient(context, *saved.blocks[layers - 1], residual_gradient);
  };
  Output gradient = make_gradient(blocks_.size());
  final_norm_->backward(saved.final_norm, dnorm, gradient, false);
  for (std::size_t layer = blocks_.size(); layer-- > 0;) {
    blocks_[layer]->backward(context, *saved.blocks[layer], gradient, [&] { return make_gradient(layer); });
    saved.blocks[layer].reset();
  }
  backend_->embedding_backward(
      residual_gradient, saved.tokens.tokens, position_embedding_ ? saved.tokens.positions : Tensor(),
      embedding_->accumulated_gradient(*backend_),
      position_embedding_ ? position_embedding_->accumulated_gradient(*backend_) : Tensor());
}

KvCache LanguageModel::make_cache(std::int64_t capacity, DType dtype) {
  KvCache cache;
  cache.capacity = capacity;
  const Shape shape{capacity, config_.kv_heads * config_.head_dim};
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    cache.layers.push_back({backend_->allocate(dtype, shape), backend_->allocate(dtype, shape)});
  }
  return cache;
}

void LanguageModel::visit(const std::string& name, ModuleVisitor& visitor) {
  visitor.parameter(join_names(name, "embedding.weight"), *embedding_);
  if (position_embedding_)
    visitor.parameter(join_names(name, "position_embedding.weight"), *position_embedding_);
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    blocks_[layer]->visit(join_names(name, "blocks." + std::to_string(layer)), visitor);
  }
  final_norm_->visit(join_names(name, "final_norm"), visitor);
  lm_head_->visit(join_names(name, "lm_head"), visitor);
}

}  // namespace quaver
