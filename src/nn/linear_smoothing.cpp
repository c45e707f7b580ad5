// Smooth-SwiGLU (arXiv 2409.12517): x diag(1/s) times diag(s) w^T is x w^T, and the columns of x diag(1/s) are of one size.
#include "base/check.h"
#include "nn/linear_casts.h"

namespace quaver {
namespace {

Tensor scaled_columns(Backend& backend, const Tensor& x, const Tensor& factors) {
  Tensor scaled = backend.allocate(x.dtype(), x.shape());
  backend.scale_columns(x, factors, scaled);
  return scaled;
}

}  // namespace

void Linear::smooth_input(bool smooth) {
  require(!smooth || backend_.has_column_scales(),
          "linear: the backend {} does not scale columns, which smoothing an input needs. Hint: "
          "fp8.smooth_swiglu = false",
          backend_.name());
  require(!smooth || input_readers() == 1, "linear: an input that {} modules read cannot be smoothed",
          input_readers());
  smooths_input_ = smooth;
  if (!smooth) fp8_.channels = {};
}

bool Linear::smooths_under(const Recipe& scope) const {
  return smooths(recipes_for(scope, *policy_));
}

bool Linear::smooths(const Recipes& recipes) const {
  if (!smooths_input_) return false;
  const auto reads_one_scale = [&](Gemm gemm) {
    const auto index = static_cast<std::size_t>(gemm);
    const std::optional<Recipe>& recipe = recipes[index];
    if (!recipe || (*policy_)[index].real_operands[static_cast<std::size_t>(OperandRole::input)])
      return false;
    return is_delayed(*recipe) || !cast_of(*recipe, OperandRole::input, gemm).scales_blocks();
  };
  return reads_one_scale(Gemm::fprop) || reads_one_scale(Gemm::wgrad);
}

Output Linear::smooth(Context& context, const Output& x, ChannelScales& channels) {
  require(x.values.defined(), "linear: a smoothed input is read in high precision, which was not produced");
  channels = {};
  if (!context.gradients_enabled()) {
    channels = fp8_.channels;
  } else {
    for (Tensor* const factors : {&channels.scale, &channels.inverse})
      *factors = backend_.allocate(DType::f32, {options_.in_features});
    backend_.column_scales(x.values, channels.scale, channels.inverse);
    if (context.leaves_trace()) fp8_.channels = channels;
  }
  const Tensor smoothed = channels ? scaled_columns(backend_, x.values, channels.inverse) : x.values;
  const Forms forms = reader_forms(context);
  if (forms.fp8 && context.leaves_trace()) {
    // What is cast is below 2 in every step, so a scale for 2 saturates in none.
    prepare_fp8(input_recipe(context));
    backend_.fill(fp8_.input->amax_history.slice(0, 1), 2);
  }
  return cast_input(context, smoothed, forms);
}

void Linear::use_channels(const ChannelScales& channels) {
  const auto address = [](const Tensor& tensor) { return tensor ? tensor.raw() : nullptr; };
  if (address(channels.scale) == address(weight_channels_)) return;
  weight_channels_ = channels.scale;
  discard_ahead();
  fp8_weight_ = {};
  real_weight_ = {};
  for (CastWeight& copy : cast_weights_) copy.version = 0;
}

Tensor Linear::weight_values() {
  return weight_channels_ ? scaled_columns(backend_, weight_->value, weight_channels_) : weight_->value;
}

void Linear::gradient_gemm(Gemm gemm, const GemmOperand& a, const GemmOperand& b, const Tensor& factors,
                           bool accumulate, const Tensor& out) {
  if (!factors) return backend_.gemm(gemm, a, b, {}, accumulate, out);
  const Tensor product = accumulate ? backend_.allocate(out.dtype(), out.shape()) : out;
  backend_.gemm(gemm, a, b, {}, false, product);
  backend_.scale_columns(product, factors, product);
  if (accumulate) backend_.add(out, product, out);
}

}  // namespace quaver
