#include "nn/feed_forward.h"

#include "nn/recompute.h"

namespace quaver {

FeedForward::FeedForward(Backend& backend, const ModelConfig& config)
    : backend_(backend),
      kind_(config.mlp),
      up_proj_(backend, {config.width, config.ffn_width, 0, config.mlp_bias ? config.ffn_width : 0}),
      down_proj_(backend, {config.ffn_width, config.width, 0, config.mlp_bias ? config.width : 0}) {
  form_product_again(down_proj_, backend, config.recompute);
  if (kind_ == Activation::gelu) return;
  gate_proj_ = std::make_unique<Linear>(backend, up_proj_.options());
  gate_proj_->share_input_of(up_proj_);
}

Output FeedForward::make_input(Context& context, std::int64_t rows) {
  return up_proj_.make_input(context, rows);
}

Tensor FeedForward::forward(Context& context, const Output& x, Saved* saved) {
  const Tensor up = up_proj_.forward(context, x, saved ? &saved->up_proj : nullptr);
  const Tensor gate =
      gate_proj_ ? gate_proj_->forward(context, x, saved ? &saved->gate_proj : nullptr) : Tensor();
  const Output h = down_proj_.make_input(context, up.rows());
  backend_.activation(kind_, gate, up, h);
  if (saved) saved->gate = gate, saved->up = up;
  return down_proj_.forward(context, h, saved ? &saved->down_proj : nullptr);
}

Output FeedForward::make_output_gradient(Context& context, const Saved& saved, const Tensor& values) {
  return down_proj_.make_output_gradient(context, saved.down_proj, values);
}

void FeedForward::backward(Context& context, const Saved& saved, const Output& dy, const Tensor& dx) {
  const Tensor dh = backend_.allocate(dx.dtype(), saved.up.shape());
  const Output dy_cast = down_proj_.cast_output_gradient(context, saved.down_proj, dy);
  down_proj_.backward_input(context, saved.down_proj, dy_cast, dh);
  const Output dup = up_proj_.make_output_gradient(context, saved.up_proj);
  const Output dgate = gate_proj_ ? gate_proj_->make_output_gradient(context, saved.gate_proj) : Output{};
  const Output h = down_proj_.make_input_again(context, saved.down_proj);
  backend_.activation_backward(kind_, dh, saved.gate, saved.up, dgate, dup, h);
  down_proj_.backward_weight(context, saved.down_proj, dy_cast, h);
  if (gate_proj_) gate_proj_->backward(context, saved.gate_proj, dgate, dx);
  up_proj_.backward(context, saved.up_proj, dup, dx, gate_proj_ != nullptr);
}

void FeedForward::visit(const std::string& name, ModuleVisitor& visitor) {
  if (gate_proj_) gate_proj_->visit(join_names(name, "gate_proj"), visitor);
  up_proj_.visit(join_names(name, "up_proj"), visitor);
  down_proj_.visit(join_names(name, "down_proj"), visitor);
}

}  // namespace quaver
