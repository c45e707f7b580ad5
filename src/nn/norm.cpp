#include "quaver/norm.h"

#include "quaver/backend.h"

namespace quaver {

RmsNorm::RmsNorm(Backend& backend, std::int64_t width, float epsilon)
    : backend_(backend), epsilon_(epsilon), gain_(backend, {width}) {
  backend.fill(gain_.value, 1);
}

void RmsNorm::forward(const NormInput& x, const Output& y, Saved* saved) {
  const Tensor rstd = saved ? backend_.allocate(DType::f32, {x.x.rows()}) : Tensor();
  backend_.rms_norm(x, gain_.value, epsilon_, y, rstd);
  if (saved) *saved = {x.normed(), {}, rstd};
}

void RmsNorm::backward(const Saved& saved, const Tensor& dy, const Output& dx, bool accumulate_dx) {
  backend_.rms_norm_backward(dy, saved.x, gain_.value, saved.rstd, accumulate_dx, dx,
                             gain_.accumulated_gradient(backend_));
}

void RmsNorm::visit(const std::string& name, ModuleVisitor& visitor) {
  visitor.parameter(join_names(name, "gain"), gain_);
}

LayerNorm::LayerNorm(Backend& backend, std::int64_t width, float epsilon)
    : backend_(backend), epsilon_(epsilon), gain_(backend, {width}), bias_(backend, {width}) {
  backend.fill(gain_.value, 1);
  backend.fill(bias_.value, 0);
}

void LayerNorm::forward(const NormInput& x, const Output& y, Saved* saved) {
  const Tensor mean = saved ? backend_.allocate(DType::f32, {x.x.rows()}) : Tensor();
  const Tensor rstd = saved ? backend_.allocate(DType::f32, {x.x.rows()}) : Tensor();
  backend_.layer_norm(x, gain_.value, bias_.value, epsilon_, y, mean, rstd);
  if (saved) *saved = {x.normed(), mean, rstd};
}

void LayerNorm::backward(const Saved& saved, const Tensor& dy, const Output& dx, bool accumulate_dx) {
  backend_.layer_norm_backward(dy, saved.x, gain_.value, saved.mean, saved.rstd, accumulate_dx, dx,
                               gain_.accumulated_gradient(backend_), bias_.accumulated_gradient(backend_));
}

void LayerNorm::visit(const std::string& name, ModuleVisitor& visitor) {
  visitor.parameter(join_names(name, "gain"), gain_);
  visitor.parameter(join_names(name, "bias"), bias_);
}

}  // namespace quaver
