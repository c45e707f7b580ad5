// Inputs that are not kept for wgrad: their producer writes them again in backward.
#include "base/check.h"
#include "nn/linear_casts.h"

namespace quaver {

void Linear::form_input_again(bool fp8, bool real) {
  require(input_readers() == 1,
          "linear: an input that {} modules read cannot be formed again for one of them", input_readers());
  forms_fp8_again_ = fp8;
  forms_real_again_ = real;
}

bool Linear::forms_input_again(const Recipes& recipes) const {
  if (smooths(recipes)) return false;
  const Reading fprop = reading_of(recipes, OperandRole::input, Gemm::fprop),
                wgrad = reading_of(recipes, OperandRole::input, Gemm::wgrad);
  if (fprop.kind != wgrad.kind) return false;
  return (fprop.kind == Reading::Kind::delayed && forms_fp8_again_) ||
         (fprop.kind == Reading::Kind::real && forms_real_again_);
}

Output Linear::make_input_again(Context& context, const Saved& saved) {
  Output x;
  if (!saved.x_again) return x;
  if (saved.x_quantizer.scale) {
    x.quantizer = saved.x_quantizer;
    x.quantized =
        allocate_quantized(backend_, x.quantizer.format, saved.rows, options_.in_features, ReadBy::gradient);
  } else {
    x.values = backend_.allocate(context.high_precision(), {saved.rows, options_.in_features});
  }
  return x;
}

}  // namespace quaver
