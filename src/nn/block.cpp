#include "nn/block.h"

#include "nn/recompute.h"

namespace quaver {

std::unique_ptr<Norm> make_norm(Backend& backend, const ModelConfig& config) {
  if (config.norm == NormKind::layer)
    return std::make_unique<LayerNorm>(backend, config.width, config.norm_epsilon);
  return std::make_unique<RmsNorm>(backend, config.width, config.norm_epsilon);
}

void BlockSaved::add_scales(std::vector<Tensor*>& scales) {
  for (Linear::Saved* linear : {&attention.out_proj, &mlp.down_proj}) {
    if (linear->x_quantizer.scale) scales.push_back(&linear->x_quantizer.scale);
  }
}

Block::Block(Backend& backend, const ModelConfig& config, const Rotary* rotary)
    : backend_(backend),
      recomputes_(config.recompute == Recompute::block),
      attention_norm_(make_norm(backend, config)),
      mlp_norm_(make_norm(backend, config)),
      attention_(backend, config, rotary),
      mlp_(backend, config) {}

NormInput Block::forward(Context& context, const TokenBatch& tokens, const NormInput& x, BlockSaved* saved,
                         const CachedLayer* cached) {
  const bool forgets = saved && recomputes_ && context.gradients_enabled();  // a probe looks at what is saved
  if (!forgets) return run(context, tokens, x, saved, cached);
  // The first run forms the sum that x may be; the second finds it.
  auto& again = saved->again.emplace(BlockSaved::Again{tokens, x.normed(), {}});
  return forward_and_forget<BlockSaved>(backend_, context, again.record, [&](BlockSaved* discarded) {
    return run(context, tokens, x, discarded, nullptr);
  });
}

NormInput Block::run(Context& context, const TokenBatch& tokens, const NormInput& x, BlockSaved* saved,
                     const CachedLayer* cached) {
  const std::int64_t rows = x.x.rows();
  const Output attention_in = attention_.make_input(context, rows);
  attention_norm_->forward(x, attention_in, saved ? &saved->attention_norm : nullptr);
  const Tensor x1 =
      attention_.forward(context, tokens, attention_in, saved ? &saved->attention : nullptr, cached);

  const Output mlp_in = mlp_.make_input(context, rows);
  mlp_norm_->forward({x.normed(), x1, x1}, mlp_in, saved ? &saved->mlp_norm : nullptr);
  const Tensor x2 = mlp_.forward(context, mlp_in, saved ? &saved->mlp : nullptr);
  return {x1, x2, x2};
}

Output Block::make_output_gradient(Context& context, const BlockSaved& saved,
                                   const Tensor& residual_gradient) {
  if (saved.again) return {residual_gradient, {}, {}};
  return mlp_.make_output_gradient(context, saved.mlp, residual_gradient);
}

void Block::backward(Context& context, const BlockSaved& saved, Output& gradient,
                     const std::function<Output()>& make_input_gradient) {
  if (saved.again) {
    const auto& [tokens, x, record] = *saved.again;
    const auto run_again = [&, &tokens = tokens, &x = x](BlockSaved* again) {
      return run(context, tokens, x, again, nullptr);
    };
    return backward(context, saved_again<BlockSaved>(context, record, run_again), gradient,
                    make_input_gradient);
  }
  const Tensor residual_gradient = gradient.values;
  const Tensor branch_gradient = backend_.allocate(residual_gradient.dtype(), residual_gradient.shape());
  mlp_.backward(context, saved.mlp, gradient, branch_gradient);
  gradient = attention_.make_output_gradient(context, saved.attention, residual_gradient);
  mlp_norm_->backward(saved.mlp_norm, branch_gradient, gradient, true);

  attention_.backward(context, saved.attention, gradient, branch_gradient);
  gradient = make_input_gradient();
  attention_norm_->backward(saved.attention_norm, branch_gradient, gradient, true);
}

void Block::visit(const std::string& name, ModuleVisitor& visitor) {
  attention_norm_->visit(join_names(name, "attention_norm"), visitor);
  attention_.visit(join_names(name, "attention"), visitor);
  mlp_norm_->visit(join_names(name, "mlp_norm"), visitor);
  mlp_.visit(join_names(name, "mlp"), visitor);
}

}  // namespace quaver
