#include "quaver/linear.h"

#include "base/check.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

constexpr auto kFprop = static_cast<std::size_t>(Gemm::fprop), kDgrad = static_cast<std::size_t>(Gemm::dgrad),
               kWgrad = static_cast<std::size_t>(Gemm::wgrad);

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

GemmOperand operand(bool in_fp8, const QuantizedTensor& quantized, const Tensor& real) {
  return in_fp8 ? GemmOperand(quantized) : GemmOperand(real);
}

void require_form(bool fp8, bool real, const Output& operand, const char* name, const char* who) {
  require(!fp8 || operand.quantized.defined(), "linear: {} reads its {} in fp8, which was not produced", who,
          name);
  require(!real || operand.values.defined(),
          "linear: {} reads its {} in high precision, which was not produced", who, name);
}

void require_shape(const Output& operand, std::int64_t rows, std::int64_t cols, const char* name) {
  for (const Tensor& present : {operand.quantized.bytes, operand.values}) {
    require(!present || (present.shape().size() == 2 && present.cols() == cols &&
                         (rows < 0 || present.rows() == rows)),
            "linear: expected an {} of shape [{}, {}], found {}", name,
            rows < 0 ? "rows" : std::to_string(rows), cols, to_string(present.shape()));
  }
}

void record(GemmRecord& gemm, const GemmOperand& a, const GemmOperand& b, const Tensor& out) {
  gemm.a = a.dtype();
  gemm.b = b.dtype();
  gemm.out = out.dtype();
  ++(is_fp8(gemm.a) && is_fp8(gemm.b) ? gemm.fp8_runs : gemm.other_runs);
}

}  // namespace

Linear::Linear(Backend& backend, const Options& options, std::shared_ptr<Parameter> weight)
    : backend_(backend),
      options_(options),
      weight_(std::move(weight)),
      owns_weight_(weight_ == nullptr),
      policy_(std::make_shared<GemmPolicies>()),
      input_readers_(std::make_shared<std::vector<std::shared_ptr<const GemmPolicies>>>(1, policy_)) {
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
  leader.input_readers_->push_back(policy_);
  input_readers_ = leader.input_readers_;
}

std::array<bool, 3> Linear::gemms_in_fp8(const Context& context) const {
  std::array<bool, 3> fp8{};
  for (std::size_t i = 0; i < fp8.size(); ++i) fp8[i] = context.recipe() && (*policy_)[i].fp8;
  return fp8;
}

Linear::Forms Linear::input_forms(const Context& context) const {
  Forms forms;
  for (const auto& reader : *input_readers_) {
    forms.add(context.recipe() && (*reader)[kFprop].fp8);
    if (context.gradients_enabled()) forms.add(context.recipe() && (*reader)[kWgrad].fp8);
  }
  return forms;
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
  const Forms forms = input_forms(context);
  if (forms.fp8) {
    const Recipe& recipe = *context.recipe();
    prepare_fp8(recipe);
    const DType format = forward_dtype(recipe);
    x.quantized = allocate_quantized(backend_, format, rows, options_.in_features);
    x.quantizer = make_quantizer(*fp8_.input, format, context.gradients_enabled());
  }
  if (forms.real) x.values = backend_.allocate(context.high_precision(), {rows, options_.in_features});
  return x;
}

Output Linear::cast_input(Context& context, const Tensor& x) {
  const Forms forms = input_forms(context);
  if (!forms.fp8) return Output{x, {}, {}};
  Output output = make_input(context, x.rows());
  output.values = Tensor();
  backend_.cast(x, output);
  if (forms.real) output.values = x;
  return output;
}

const QuantizedTensor& Linear::fp8_weight(Context& context) {
  const DType dtype = forward_dtype(*context.recipe());
  const bool must_stage = context.gradients_enabled();
  const bool current = fp8_weight_.version == weight_->version && fp8_weight_.dtype == dtype;
  if (!current || (must_stage && !fp8_weight_.staged)) {
    // A copy keeps its place while its type stays, so that a device meets the same addresses in every step. What an
    // earlier forward kept for its backward is overwritten, as the master is.
    QuantizedTensor copy = fp8_weight_.dtype == dtype ? fp8_weight_.copy : QuantizedTensor();
    if (!copy.defined())
      copy = allocate_quantized(backend_, dtype, options_.out_features, options_.in_features);
    backend_.cast(weight_->value, {{}, copy, make_quantizer(*fp8_.weight, dtype, must_stage)});
    fp8_weight_ = {std::move(copy), weight_->version, dtype, must_stage};
    ++weight_casts_;
  }
  return fp8_weight_.copy;
}

const Tensor& Linear::real_weight(Context& context) {
  const DType dtype = context.high_precision();
  if (dtype == DType::f32) return weight_->value;
  if (real_weight_.version != weight_->version || real_weight_.dtype != dtype) {
    Tensor copy = real_weight_.dtype == dtype ? real_weight_.copy : Tensor();  // in its place, as above
    if (!copy) copy = backend_.allocate(dtype, weight_->value.shape());
    backend_.convert(weight_->value, copy);
    real_weight_ = {std::move(copy), weight_->version, dtype, false};
    ++weight_casts_;
  }
  return real_weight_.copy;
}

void Linear::drop_unread_weights(const Forms& read) {
  if (!read.fp8) fp8_weight_ = {};
  if (!read.real) real_weight_ = {};
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
  if (!context.gradients_enabled())
    saved = nullptr;  // no backward follows, and the input has fprop's form alone
  const auto in_fp8 = gemms_in_fp8(context);
  const bool fprop = in_fp8[kFprop], dgrad = in_fp8[kDgrad], wgrad = in_fp8[kWgrad];
  require_form(fprop, !fprop, x, "input", "fprop");
  if (saved) require_form(wgrad, !wgrad, x, "input", "wgrad");
  require_shape(x, -1, options_.in_features, "input");
  const bool any = fprop || dgrad || wgrad;
  const auto& recipe = any ? context.recipe() : std::nullopt;
  if (any) prepare_fp8(*recipe);

  Forms weight_forms;
  weight_forms.add(fprop);
  if (saved) weight_forms.add(dgrad);
  if (any && context.gradients_enabled()) {
    if (x.quantized.defined() && (fprop || wgrad)) context.register_forward(fp8_.input, *recipe);
    if (weight_forms.fp8) context.register_forward(fp8_.weight, *recipe);
  }
  drop_unread_weights({fprop || dgrad, !fprop || !dgrad});
  const QuantizedTensor w_fp8 = weight_forms.fp8 ? fp8_weight(context) : QuantizedTensor();
  const Tensor w = weight_forms.real ? real_weight(context) : Tensor();

  const GemmOperand a = operand(fprop, x.quantized, x.values), b = operand(fprop, w_fp8, w);
  Tensor y = backend_.allocate(context.high_precision(), {a.values.rows(), options_.out_features});
  backend_.gemm(Gemm::fprop, a, b, full_bias(), false, y);
  record(fp8_.gemms[kFprop], a, b, y);
  if (saved) {
    *saved = {y.rows(),
              in_fp8,
              wgrad ? Tensor() : x.values,
              wgrad ? x.quantized : QuantizedTensor(),
              dgrad ? Tensor() : w,
              dgrad ? w_fp8 : QuantizedTensor(),
              recipe};
  }
  return y;
}

Output Linear::make_output_gradient(Context& context, const Saved& saved) {
  Output dy;
  if (saved.reads_fp8_gradient()) {
    const DType format = gradient_dtype(*saved.recipe);
    dy.quantized = allocate_quantized(backend_, format, saved.rows, options_.out_features);
    dy.quantizer = make_quantizer(*fp8_.grad_output, format, true);
  }
  // The bias gradient sums the unquantised dy.
  if (saved.reads_real_gradient() || bias_)
    dy.values = backend_.allocate(context.high_precision(), {saved.rows, options_.out_features});
  return dy;
}

Output Linear::cast_output_gradient(Context& context, const Saved& saved, const Tensor& dy) {
  if (!saved.reads_fp8_gradient()) return Output{dy, {}, {}};
  Output output = make_output_gradient(context, saved);
  output.values = Tensor();
  backend_.cast(dy, output);
  output.values = dy;
  return output;
}

void Linear::backward(Context& context, const Saved& saved, const Output& dy, const Tensor& dx,
                      bool accumulate_dx) {
  const bool dgrad = saved.in_fp8[kDgrad], wgrad = saved.in_fp8[kWgrad];
  if (dx) require_form(dgrad, !dgrad, dy, "output gradient", "dgrad");
  require_form(wgrad, !wgrad, dy, "output gradient", "wgrad");
  require_shape(dy, saved.rows, options_.out_features, "output gradient");
  if (saved.reads_fp8_gradient()) context.register_backward(fp8_.grad_output, *saved.recipe);

  if (dx) {
    const GemmOperand a = operand(dgrad, dy.quantized, dy.values), b = operand(dgrad, saved.w_fp8, saved.w);
    backend_.gemm(Gemm::dgrad, a, b, {}, accumulate_dx, dx);
    record(fp8_.gemms[kDgrad], a, b, dx);
  }
  const GemmOperand a = operand(wgrad, dy.quantized, dy.values), b = operand(wgrad, saved.x_fp8, saved.x);
  backend_.gemm(Gemm::wgrad, a, b, {}, weight_->begin_accumulation(), weight_->gradient);
  record(fp8_.gemms[kWgrad], a, b, weight_->gradient);
  if (bias_) {
    require(dy.values.defined(), "linear: the bias reads its output gradient in high precision");
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
