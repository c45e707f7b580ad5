#include "nn/feed_forward.h"

#include "nn/recompute.h"

namespace quaver {

FeedForward::FeedForward(Backend& backend, const ModelConfig& config)
    : backend_(backend),
      kind_(config.mlp),
      features_(config.ffn_width),
      down_proj_(backend, {config.ffn_width, config.width, 0, config.mlp_bias ? config.width : 0}) {
  form_product_again(down_proj_, backend, config.recompute);
  const auto make_projection = [&](std::int64_t outputs) {
    return std::make_unique<Linear>(backend,
                                    Linear::Options{config.width, outputs, 0, config.mlp_bias ? outputs : 0});
  };
  if (packs_gate_up(config)) {
    gate_up_proj_ = make_projection(2 * features_);
    return;
  }
  up_proj_ = make_projection(features_);
  if (feed_forward_inputs(config) == 1) return;
  gate_proj_ = make_projection(features_);
  gate_proj_->share_input_of(*up_proj_);
}

Output FeedForward::make_input(Context& context, std::int64_t rows) {
  return (gate_up_proj_ ? *gate_up_proj_ : *up_proj_).make_input(context, rows);
}

FeedForward::Projections FeedForward::project(Context& context, const Output& x, Saved* saved) {
  if (gate_up_proj_) {
    const Tensor packed = gate_up_proj_->forward(context, x, saved ? &saved->gate_up_proj : nullptr);
    return {packed.columns(0, features_), packed.columns(features_, features_)};
  }
  const Tensor up = up_proj_->forward(context, x, saved ? &saved->up_proj : nullptr);
  if (!gate_proj_) return {{}, up};
  return {gate_proj_->forward(context, x, saved ? &saved->gate_proj : nullptr), up};
}

Tensor FeedForward::forward(Context& context, const Output& x, Saved* saved) {
  const Projections projected = project(context, x, saved);
  const Output h = down_proj_.make_input(context, projected.up.rows());
  backend_.activation(kind_, projected.gate, projected.up, h);
  if (saved) saved->projected = projected;
  return down_proj_.forward(context, h, saved ? &saved->down_proj : nullptr);
}

Output FeedForward::make_output_gradient(Context& context, const Saved& saved, const Tensor& values) {
  return down_proj_.make_output_gradient(context, saved.down_proj, values);
}

FeedForward::Gradients FeedForward::make_gradients(Context& context, const Saved& saved) {
  if (gate_up_proj_) {
    const Output packed = gate_up_proj_->make_output_gradient(context, saved.gate_up_proj);
    return {packed, packed.columns(0, features_), packed.columns(features_, features_)};
  }
  const Output up = up_proj_->make_output_gradient(context, saved.up_proj);
  return {{}, gate_proj_ ? gate_proj_->make_output_gradient(context, saved.gate_proj) : Output{}, up};
}

void FeedForward::project_backward(Context& context, const Saved& saved, const Gradients& gradients,
                                   const Tensor& dx) {
  if (gate_up_proj_) return gate_up_proj_->backward(context, saved.gate_up_proj, gradients.packed, dx);
  if (gate_proj_) gate_proj_->backward(context, saved.gate_proj, gradients.gate, dx);
  up_proj_->backward(context, saved.up_proj, gradients.up, dx, gate_proj_ != nullptr);
}

void FeedForward::backward(Context& context, const Saved& saved, const Output& dy, const Tensor& dx) {
  const auto& [gate, up] = saved.projected;
  const Tensor dh = backend_.allocate(dx.dtype(), up.shape());
  const Output dy_cast = down_proj_.cast_output_gradient(context, saved.down_proj, dy);
  down_proj_.backward_input(context, saved.down_proj, dy_cast, dh);
  const Gradients gradients = make_gradients(context, saved);
  const Output h = down_proj_.make_input_again(context, saved.down_proj);
  backend_.activation_backward(kind_, dh, gate, up, gradients.gate, gradients.up, h);
  down_proj_.backward_weight(context, saved.down_proj, dy_cast, h);
  project_backward(context, saved, gradients, dx);
}

void FeedForward::visit(const std::string& name, ModuleVisitor& visitor) {
  if (gate_up_proj_) gate_up_proj_->visit(join_names(name, "gate_up_proj"), visitor);
  if (gate_proj_) gate_proj_->visit(join_names(name, "gate_proj"), visitor);
  if (up_proj_) up_proj_->visit(join_names(name, "up_proj"), visitor);
  down_proj_.visit(join_names(name, "down_proj"), visitor);
}

}  // namespace quaver
