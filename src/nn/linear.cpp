#include "quaver/linear.h"

#include "base/check.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

std::shared_ptr<ScalingSlot> make_slot(Backend& backend, int history_length) {
  auto slot = std::make_shared<ScalingSlot>();
  slot->scale = backend.allocate(DType::f32, {1});
  slot->amax_history = backend.allocate(DType::f32, {history_length});
  slot->counters = backend.allocate(DType::i64, {kCastCounters});
  backend.fill(slot->scale, 1);
  backend.fill(slot->amax_history, 0);
  backend.fill(slot->counters, 0);
  return slot;
}

Quantizer make_quantizer(const ScalingSlot& slot, DType format, bool leave_trace) {
  Quantizer quantizer{format, slot.scale, {}, {}};
  if (leave_trace) {
    quantizer.amax = slot.amax_history.slice(0, 1);
    quantizer.counters = slot.counters;
  }
  return quantizer;
}

QuantizedTensor allocate_quantized(Backend& backend, DType format, std::int64_t rows, std::int64_t cols) {
  QuantizedTensor q;
  q.bytes = backend.allocate(format, {rows, cols});
  if (backend.needs_transposed_fp8()) q.transposed = backend.allocate(format, {cols, rows});
  q.scale_inv = backend.allocate(DType::f32, {1});
  return q;
}

GemmOperand operand(const QuantizedTensor& quantized, const Tensor& real) {
  return quantized.defined() ? GemmOperand(quantized) : GemmOperand(real);
}

void record(GemmRecord& gemm, const GemmOperand& a, const GemmOperand& b, const Tensor& out) {
  gemm.a = a.dtype();
  gemm.b = b.dtype();
  gemm.out = out.dtype();
  ++(is_fp8(gemm.a) && is_fp8(gemm.b) ? gemm.fp8_runs : gemm.other_runs);
}

}  // namespace

Linear::Linear(Backend& backend, const Options& options, std::shared_ptr<Parameter> weight)
    : backend_(backend), options_(options), weight_(std::move(weight)), owns_weight_(weight_ == nullptr) {
  const auto [in, out, bias_begin, bias_count] = options;
  require(in > 0 && out > 0, "linear: expected positive features, found {} -> {}", in, out);
  require(bias_begin >= 0 && bias_count >= 0 && bias_begin + bias_count <= out,
          "linear: bias columns [{}, {}) of {} output features", bias_begin, bias_begin + bias_count, out);
  if (owns_weight_) weight_ = std::make_shared<Parameter>(backend, Shape{out, in});
  require(weight_->value.shape() == Shape{out, in}, "linear: a shared weight of shape {}, expected {}",
          to_string(weight_->value.shape()), to_string({out, in}));
  if (bias_count > 0) bias_ = std::make_unique<Parameter>(backend, Shape{bias_count});
}

void Linear::share_input_of(Linear& leader) {
  require(leader.options_.in_features == options_.in_features,
          "linear: cannot share an input of {} features with a module that reads {}",
          leader.options_.in_features, options_.in_features);
  input_leader_ = &leader;
  fp8_.owns_input = false;
}

void Linear::prepare_fp8(const Recipe& recipe) {
  const int length = std::get<DelayedScaling>(recipe).amax_history_len;
  require(length >= 1, "linear: expected an amax_history_len of at least 1, found {}", length);
  const auto prepare = [&](std::shared_ptr<ScalingSlot>& slot) {
    if (!slot || slot->amax_history.elements() != length) slot = make_slot(backend_, length);
  };
  if (input_leader_) {
    input_leader_->prepare_fp8(recipe);
    fp8_.input = input_leader_->fp8_.input;
  } else {
    prepare(fp8_.input);
  }
  prepare(fp8_.weight);
  prepare(fp8_.grad_output);
  fp8_.recipe = recipe;
}

Output Linear::make_input(Context& context, std::int64_t rows) {
  Output x;
  if (const auto& recipe = context.recipe()) {
    prepare_fp8(*recipe);
    const DType format = forward_dtype(*recipe);
    x.quantized = allocate_quantized(backend_, format, rows, options_.in_features);
    x.quantizer = make_quantizer(*fp8_.input, format, context.gradients_enabled());
  } else {
    x.values = backend_.allocate(context.high_precision(), {rows, options_.in_features});
  }
  return x;
}

Output Linear::cast_input(Context& context, const Tensor& x) {
  if (!context.recipe()) return Output{x, {}, {}};
  Output output = make_input(context, x.rows());
  backend_.cast(x, output);
  return output;
}

const Linear::WeightCopy& Linear::weight_copy(Context& context) {
  const auto& recipe = context.recipe();
  const DType dtype = recipe ? forward_dtype(*recipe) : context.high_precision();
  const bool must_stage = recipe && context.gradients_enabled();
  const bool current = weight_copy_.version == weight_->version && weight_copy_.dtype == dtype;
  if (current && (weight_copy_.staged || !must_stage)) return weight_copy_;

  WeightCopy copy{{}, {}, weight_->version, dtype, must_stage};
  if (recipe) {
    copy.quantized = allocate_quantized(backend_, dtype, options_.out_features, options_.in_features);
    backend_.cast(weight_->value, {{}, copy.quantized, make_quantizer(*fp8_.weight, dtype, must_stage)});
  } else if (dtype == DType::f32) {
    copy.real = weight_->value;
  } else {
    copy.real = backend_.allocate(dtype, weight_->value.shape());
    backend_.convert(weight_->value, copy.real);
  }
  ++weight_casts_;
  weight_copy_ = std::move(copy);
  return weight_copy_;
}

Tensor Linear::full_bias() {
  if (!bias_ || options_.bias_count == options_.out_features) return bias_ ? bias_->value : Tensor();
  if (full_bias_version_ != bias_->version) {
    full_bias_ = backend_.allocate(DType::f32, {options_.out_features});
    backend_.fill(full_bias_, 0);
    backend_.copy(bias_->value, full_bias_.slice(options_.bias_begin, options_.bias_count));
    full_bias_version_ = bias_->version;
  }
  return full_bias_;
}

Tensor Linear::forward(Context& context, const Output& x, Saved* saved) {
  const auto& recipe = context.recipe();
  const Tensor& present = recipe ? x.quantized.bytes : x.values;
  require(present.defined(), "linear: the context asks for {}, the input was produced in {}",
          recipe ? "fp8" : "high precision", recipe ? "high precision only" : "fp8 only");
  require(present.shape().size() == 2 && present.cols() == options_.in_features,
          "linear: expected an input of shape [rows, {}], found {}", options_.in_features,
          to_string(present.shape()));
  if (recipe) {
    prepare_fp8(*recipe);
    if (context.gradients_enabled()) {
      context.register_forward(fp8_.input, *recipe);
      context.register_forward(fp8_.weight, *recipe);
    }
  }
  const WeightCopy& weight = weight_copy(context);
  const GemmOperand a = recipe ? GemmOperand(x.quantized) : GemmOperand(x.values);
  const GemmOperand b = operand(weight.quantized, weight.real);
  Tensor y = backend_.allocate(context.high_precision(), {present.rows(), options_.out_features});
  backend_.gemm(Gemm::fprop, a, b, full_bias(), false, y);
  record(fp8_.gemms[0], a, b, y);
  if (saved) {
    *saved = {present.rows(),
              recipe ? Tensor() : x.values,
              recipe ? x.quantized : QuantizedTensor(),
              weight.real,
              weight.quantized,
              recipe};
  }
  return y;
}

Output Linear::make_output_gradient(Context& context, const Saved& saved) {
  Output dy;
  const Shape shape{saved.rows, options_.out_features};
  if (saved.recipe) {
    const DType format = gradient_dtype(*saved.recipe);
    dy.quantized = allocate_quantized(backend_, format, saved.rows, options_.out_features);
    dy.quantizer = make_quantizer(*fp8_.grad_output, format, true);
  }
  // The bias gradient sums the unquantised dy.
  if (!saved.recipe || bias_) dy.values = backend_.allocate(context.high_precision(), shape);
  return dy;
}

Output Linear::cast_output_gradient(Context& context, const Saved& saved, const Tensor& dy) {
  if (!saved.recipe) return Output{dy, {}, {}};
  Output output = make_output_gradient(context, saved);
  output.values = Tensor();
  backend_.cast(dy, output);
  output.values = dy;
  return output;
}

void Linear::backward(Context& context, const Saved& saved, const Output& dy, const Tensor& dx,
                      bool accumulate_dx) {
  const Tensor& present = saved.recipe ? dy.quantized.bytes : dy.values;
  require(present.defined() && present.shape() == Shape{saved.rows, options_.out_features},
          "linear: expected an output gradient of shape {} in {}, found {}",
          to_string({saved.rows, options_.out_features}), saved.recipe ? "fp8" : "high precision",
          present.defined() ? to_string(present.shape()) : "none");
  if (saved.recipe) context.register_backward(fp8_.grad_output, *saved.recipe);

  const GemmOperand gradient = saved.recipe ? GemmOperand(dy.quantized) : GemmOperand(dy.values);
  const GemmOperand weight = operand(saved.w_fp8, saved.w);
  const GemmOperand input = operand(saved.x_fp8, saved.x);
  if (dx) {
    backend_.gemm(Gemm::dgrad, gradient, weight, {}, accumulate_dx, dx);
    record(fp8_.gemms[1], gradient, weight, dx);
  }
  backend_.gemm(Gemm::wgrad, gradient, input, {}, weight_->begin_accumulation(), weight_->gradient);
  record(fp8_.gemms[2], gradient, input, weight_->gradient);
  if (bias_) {
    backend_.sum_rows(dy.values.columns(options_.bias_begin, options_.bias_count),
                      bias_->accumulated_gradient(backend_));
  }
}

void Linear::visit(const std::string& name, ModuleVisitor& visitor) {
  visitor.linear(name, *this);
  if (owns_weight_) visitor.parameter(join_names(name, "weight"), *weight_);
  if (bias_) visitor.parameter(join_names(name, "bias"), *bias_);
}

}  // namespace quaver
