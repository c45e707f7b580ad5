#include "quaver/linear.h"

#include <algorithm>

#include "base/check.h"
#include "base/random.h"
#include "nn/linear_casts.h"
#include "tensor/shape_text.h"

namespace quaver {
namespace {

constexpr auto kFprop = static_cast<std::size_t>(Gemm::fprop), kDgrad = static_cast<std::size_t>(Gemm::dgrad),
               kWgrad = static_cast<std::size_t>(Gemm::wgrad);

std::shared_ptr<ScalingSlot> make_slot(Backend& backend, int history_length, bool casts_ahead) {
  auto slot = std::make_shared<ScalingSlot>();
  slot->scale = backend.allocate(DType::f32, {1});
  slot->amax_history = backend.allocate(DType::f32, {history_length});
  slot->counters = backend.allocate(DType::i64, {kCastCounters});
  backend.fill(slot->scale, 1);
  backend.fill(slot->amax_history, 0);
  backend.fill(slot->counters, 0);
  if (!casts_ahead) return slot;
  slot->ahead_amax = backend.allocate(DType::f32, {1});
  slot->ahead_counters = backend.allocate(DType::i64, {kCastCounters});
  backend.fill(slot->ahead_amax, 0);
  backend.fill(slot->ahead_counters, 0);
  return slot;
}

/// What backward kept of an operand.
GemmOperand kept(const QuantizedTensor& quantized, const Tensor& real) {
  return quantized.defined() ? GemmOperand(quantized) : GemmOperand(real);
}

void require_shape(const Output& operand, std::int64_t rows, std::int64_t cols, const char* name) {
  for (const Tensor* const present : {&operand.quantized.bytes, &operand.values}) {
    const Shape& shape = present->shape();
    if (!*present || (shape.size() == 2 && shape[1] == cols && (rows < 0 || shape[0] == rows))) continue;
    fail(ErrorKind::usage, "linear: expected an {} of shape [{}, {}], found {}", name,
         rows < 0 ? "rows" : std::to_string(rows), cols, ShapeText{shape});
  }
}

void keep(GemmOperand operand, QuantizedTensor& quantized, Tensor& real) {
  if (is_quantized(operand.dtype())) {
    quantized = {operand.values, operand.transposed, operand.scale_inv, operand.blocks, operand.e2m1_cols};
  } else {
    real = operand.values;
  }
}

bool contains_delayed(const std::array<std::optional<Recipe>, 3>& recipes) {
  return std::any_of(recipes.begin(), recipes.end(),
                     [](const auto& recipe) { return recipe && is_delayed(*recipe); });
}

/// The recipe that decides about the slots: DelayedScaling if there is one. Nothing in high precision.
std::optional<Recipe> slot_recipe(const std::array<std::optional<Recipe>, 3>& recipes) {
  std::optional<Recipe> found;
  for (const auto& recipe : recipes) {
    if (!recipe) continue;
    if (found && is_delayed(*found) && is_delayed(*recipe) && *found != *recipe) {
      fail(ErrorKind::usage,
           "linear: one module under two recipes of delayed scaling, {} and {}: its GEMMs share their scales",
           describe(*found), describe(*recipe));
    }
    if (!found || is_delayed(*recipe)) found = recipe;
  }
  return found;
}

bool is_delayed_at(const std::array<std::optional<Recipe>, 3>& recipes, std::size_t gemm) {
  return recipes[gemm] && is_delayed(*recipes[gemm]);
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
  require(weight_->value.shape() == Shape{out, in}, "linear: a shared weight of shape {}, expected [{}, {}]",
          ShapeText{weight_->value.shape()}, out, in);
  if (bias_count > 0) bias_ = std::make_unique<Parameter>(backend, Shape{bias_count});
}

void Linear::share_input_of(Linear& leader) {
  require(leader.options_.in_features == options_.in_features,
          "linear: cannot share an input of {} features with a module that reads {}",
          leader.options_.in_features, options_.in_features);
  require(!leader.smooths_input_, "linear: cannot share an input that is smoothed for one module");
  input_leader_ = &leader;
  fp8_.owns_input = false;
  leader.input_readers_->push_back(policy_);
  input_readers_ = leader.input_readers_;
}

Linear::Recipes Linear::recipes_for(const std::optional<Recipe>& scope, const GemmPolicies& policy) {
  Recipes recipes;
  for (std::size_t i = 0; i < recipes.size(); ++i) {
    if (scope && policy[i].fp8) recipes[i] = policy[i].recipe ? policy[i].recipe : scope;
  }
  return recipes;
}

Linear::Reading Linear::reading_of(const Recipes& recipes, OperandRole role, Gemm gemm) const {
  const auto index = static_cast<std::size_t>(gemm);
  const std::optional<Recipe>& recipe = recipes[index];
  if (!recipe) return {};
  if ((*policy_)[index].real_operands[static_cast<std::size_t>(role)]) {
    require(backend_.mixes_operands(),
            "linear: the backend {} multiplies no BF16 operand by a quantised one, as {} of {} asks. Hint: "
            "without `operand`, the whole product stays in BF16",
            backend_.name(), name_of(role), name_of(gemm));
    return {};
  }
  if (is_delayed(*recipe)) {
    if (role != OperandRole::weight || !smooths(recipes)) return {Reading::Kind::delayed};
    // The smoothed weight follows scales of this very input: the amax of an earlier one tells nothing about it.
    const CurrentScaling current{std::get<DelayedScaling>(*recipe).fp8_format};
    return {Reading::Kind::cast, current.cast_of(role, gemm)};
  }
  Reading reading{Reading::Kind::cast, cast_of(*recipe, role, gemm)};
  const std::string why = backend_.why_no_cast(reading.cast);
  if (why.empty()) return reading;
  fail(ErrorKind::usage,
       "linear: the backend {} does not run the recipe {} ({} of {}): {}. Hint: recipe = \"delayed\" or "
       "\"current\", or the backend cpu",
       backend_.name(), describe(*recipe), name_of(role), name_of(gemm), why);
}

void Linear::require_recipes(const std::optional<Recipe>& scope) const {
  const Recipes recipes = recipes_for(scope, *policy_);
  for (const Gemm gemm : {Gemm::fprop, Gemm::dgrad, Gemm::wgrad}) {
    for (const OperandRole role : operands_of(gemm)) reading_of(recipes, role, gemm);
  }
}

Linear::Forms Linear::input_forms(const Context& context) const {
  if (smooths(recipes_for(context.casting_recipe(), *policy_))) return {.fp8 = false, .real = true};
  return reader_forms(context);
}

Linear::Forms Linear::reader_forms(const Context& context) const {
  Forms forms;
  for (const auto& reader : *input_readers_) {
    const Recipes recipes = recipes_for(context.casting_recipe(), *reader);
    for (const std::size_t gemm : {kFprop, kWgrad}) {
      if (gemm == kWgrad && !context.gradients_enabled()) continue;
      const bool real = (*reader)[gemm].real_operands[static_cast<std::size_t>(OperandRole::input)];
      forms.add(recipes[gemm] && is_delayed(*recipes[gemm]) && !real);
    }
    if (context.calibration()) forms.real = true;
  }
  if (forms.fp8 && context.counts_exponents()) forms.real = true;
  return forms;
}

void Linear::prepare_fp8(const Recipe& recipe) {
  const auto* const delayed = std::get_if<DelayedScaling>(&recipe);
  const int length = delayed ? delayed->amax_history_len : 1;
  require(length >= 1, "linear: expected an amax_history_len of at least 1, found {}", length);
  const auto prepare = [&](std::shared_ptr<ScalingSlot>& slot, bool casts_ahead = false) {
    if (!slot || (delayed && slot->amax_history.elements() != length))
      slot = make_slot(backend_, length, casts_ahead);
  };
  prepare(input_leader_ ? input_leader_->fp8_.input : fp8_.input);
  if (input_leader_) fp8_.input = input_leader_->fp8_.input;
  const auto weight_slot = fp8_.weight;
  prepare(fp8_.weight, true);
  if (fp8_.weight != weight_slot) discard_ahead();  // cast with the scale of another slot
  prepare(fp8_.grad_output);
  fp8_.recipe = recipe;
}

const DelayedScaling& Linear::input_recipe(const Context& context) const {
  for (const auto& reader : *input_readers_) {
    for (const std::size_t gemm : {kFprop, kWgrad}) {
      const GemmPolicy& policy = (*reader)[gemm];
      const auto& recipe = policy.recipe ? policy.recipe : context.casting_recipe();
      if (policy.fp8 && is_delayed(*recipe)) return std::get<DelayedScaling>(*recipe);
    }
  }
  fail(ErrorKind::usage, "linear: no reader of this input follows delayed scaling");
}

Output Linear::make_input(Context& context, std::int64_t rows) {
  return make_input(context, rows, input_forms(context));
}

Output Linear::make_input(Context& context, std::int64_t rows, const Forms& forms) {
  Output x;
  if (forms.fp8) {
    prepare_fp8(input_recipe(context));
    x.quantizer = input_quantizer(context);
    const bool wgrad_reads = context.gradients_enabled() && !forms_input_again(recipes_of(context));
    x.quantized = allocate_quantized(backend_, x.quantizer.format, rows, options_.in_features,
                                     wgrad_reads ? ReadBy::both : ReadBy::fprop);
  }
  if (forms.real) x.values = backend_.allocate(context.high_precision(), {rows, options_.in_features});
  x.casts = std::make_shared<CastCache>();
  return x;
}

Quantizer Linear::input_quantizer(Context& context) {
  Quantizer quantizer =
      make_quantizer(*fp8_.input, forward_dtype(input_recipe(context)), context.leaves_trace());
  quantizer.scale = context.input_scale(*fp8_.input);
  if (context.calibration()) quantizer.counters = Tensor();  // nobody reads these bytes
  return quantizer;
}

Output Linear::cast_input(Context& context, const Tensor& x) {
  return cast_input(context, x, input_forms(context));
}

Output Linear::cast_input(Context& context, const Tensor& x, const Forms& forms) {
  if (!forms.fp8) return Output{x, {}, {}, std::make_shared<CastCache>()};
  Output output = make_input(context, x.rows(), {.fp8 = true, .real = false});
  backend_.cast(x, output);
  if (forms.real) output.values = x;
  return output;
}

void Linear::count_exponents(const Tensor& x, ScalingSlot& slot) {
  if (!slot.exponents) {
    slot.exponents = backend_.allocate(DType::i64, {kExponents});
    backend_.fill(slot.exponents, 0);
  }
  backend_.count_exponents(x, slot.exponents);
}

void Linear::calibrate(Context& context, const Output& x, const Recipes& recipes, bool trains) {
  const Recipe recipe = *slot_recipe(recipes);
  prepare_fp8(recipe);
  if (!context.leaves_trace()) return;
  if (x.quantized.defined()) context.register_forward(fp8_.input, recipe);
  if (!is_delayed_at(recipes, kFprop) && !(trains && is_delayed_at(recipes, kDgrad))) return;
  if (smooths(recipes)) return;  // its weight is cast by current scaling
  // A copy that nobody reads: one that stayed would be read by a later FP8 scope with the scale of before.
  const DType format = forward_dtype(std::get<DelayedScaling>(recipe));
  Quantizer quantizer = make_quantizer(*fp8_.weight, format, true);
  quantizer.counters = Tensor();
  backend_.cast(
      weight_->value,
      {{}, allocate_quantized(backend_, format, options_.out_features, options_.in_features), quantizer});
  context.register_forward(fp8_.weight, recipe);
}

ScalingSlot& Linear::slot_of(OperandRole role) {
  return *(role == OperandRole::input    ? fp8_.input
           : role == OperandRole::weight ? fp8_.weight
                                         : fp8_.grad_output);
}

CastNoise Linear::noise_of(const Context& context, OperandRole role, Gemm gemm) const {
  const auto id = static_cast<std::uint64_t>(role) * 3 + static_cast<std::uint64_t>(gemm);
  return {context.noise_seed(), Random(noise_stream_, context.noise_position()).bits(id)};
}

void Linear::quantize(Context& context, const Tensor& x, const OperandCast& cast, OperandRole role, Gemm gemm,
                      const QuantizedTensor& q) {
  ScalingSlot& slot = slot_of(role);
  backend_.quantize(x, cast, noise_of(context, role, gemm), context.leaves_trace() ? slot.counters : Tensor(),
                    q);
  if (context.counts_exponents()) count_exponents(x, slot);
}

void Linear::cast_for_both(Context& context, const Output& operand, OperandRole role, Gemm first_gemm,
                           const Reading& first, Gemm second_gemm, const Reading& second) {
  if (first.kind != Reading::Kind::cast || second.kind != Reading::Kind::cast || first.cast == second.cast)
    return;
  if (!operand.casts || operand.casts->find(first.cast) || operand.casts->find(second.cast)) return;
  const Tensor& x = operand.values;
  if (!x) return;
  ScalingSlot& slot = slot_of(role);
  QuantizedTensor a = allocate_quantized(backend_, first.cast, x.rows(), x.cols()),
                  b = allocate_quantized(backend_, second.cast, x.rows(), x.cols());
  backend_.quantize_both(x, {first.cast, noise_of(context, role, first_gemm), a},
                         {second.cast, noise_of(context, role, second_gemm), b},
                         context.leaves_trace() ? slot.counters : Tensor());
  for (int cast = 0; context.counts_exponents() && cast < 2; ++cast) count_exponents(x, slot);
  operand.casts->add(first.cast, std::move(a));
  operand.casts->add(second.cast, std::move(b));
}

GemmOperand Linear::read(Context& context, const Output& operand, const Reading& reading, OperandRole role,
                         Gemm gemm) {
  if (reading.kind == Reading::Kind::delayed) {
    require(operand.quantized.defined(), "linear: {} reads its {} in fp8, which was not produced",
            name_of(gemm), name_of(role));
    return operand.quantized;
  }
  require(operand.values.defined(), "linear: {} reads its {} in high precision, which was not produced",
          name_of(gemm), name_of(role));
  if (reading.kind == Reading::Kind::real) return operand.values;
  if (operand.casts) {
    if (const QuantizedTensor* const known = operand.casts->find(reading.cast)) return *known;
  }
  const Tensor& x = operand.values;
  QuantizedTensor q = allocate_quantized(backend_, reading.cast, x.rows(), x.cols());
  quantize(context, x, reading.cast, role, gemm, q);
  if (operand.casts) operand.casts->add(reading.cast, q);
  return q;
}

void Linear::record(Gemm gemm, const Recipes& recipes, const GemmOperand& a, const GemmOperand& b,
                    const Tensor& out) {
  const auto index = static_cast<std::size_t>(gemm);
  GemmRecord& known = fp8_.gemms[index];
  const bool changed = described_[index] != recipes[index];
  // Kernels are chosen by types, sizes and forms of scales.
  if (known.kernel.empty() || changed || recorded_rows_[index] != a.rows() || known.a != a.dtype() ||
      known.b != b.dtype() || known.out != out.dtype()) {
    known.kernel = backend_.last_gemm_kernel();
    recorded_rows_[index] = a.rows();
  }
  known.a = a.dtype();
  known.b = b.dtype();
  known.out = out.dtype();
  if (!recipes[index]) {
    known.recipe.clear();
  } else if (known.recipe.empty() || changed) {
    known.recipe = describe(*recipes[index]);
  }
  described_[index] = recipes[index];
  ++(is_quantized(known.a) || is_quantized(known.b) ? known.fp8_runs : known.other_runs);
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

Tensor Linear::forward(Context& context, const Output& input, Saved* saved) {
  if (!context.gradients_enabled())
    saved = nullptr;  // no backward follows, and the input has fprop's form alone
  require_shape(input, -1, options_.in_features, "input");
  const Recipes recipes = recipes_of(context), calibrated = recipes_for(context.calibration(), *policy_);
  const std::optional<Recipe> recipe = slot_recipe(recipes);
  if (recipe) {
    // A sibling under delayed scaling reads this module's input slot.
    prepare_fp8(is_delayed(*recipe) || !input_forms(context).fp8 ? *recipe : Recipe(input_recipe(context)));
  }
  ChannelScales channels;
  std::optional<Output> smoothed;
  const bool calibrates = contains_delayed(calibrated);
  if (smooths(calibrates ? calibrated : recipes)) smoothed = smooth(context, input, channels);
  const Output& cast = smoothed ? *smoothed : input;
  if (calibrates) calibrate(context, cast, calibrated, saved != nullptr);
  // The products of a calibrating scope read what they would without it.
  const Output& x = calibrates ? input : cast;
  if (calibrates) channels = {};
  use_channels(channels);
  // Siblings read the leader's slot, and the leader counts it.
  if (cast.quantized.defined() && fp8_.owns_input && context.counts_exponents())
    count_exponents(cast.values, *fp8_.input);
  const Reading x_fprop = reading_of(recipes, OperandRole::input, Gemm::fprop),
                x_wgrad = reading_of(recipes, OperandRole::input, Gemm::wgrad),
                w_fprop = reading_of(recipes, OperandRole::weight, Gemm::fprop),
                w_dgrad = reading_of(recipes, OperandRole::weight, Gemm::dgrad);

  if (contains_delayed(recipes) && context.leaves_trace()) {
    const auto delayed = [](const Reading& reading) { return reading.kind == Reading::Kind::delayed; };
    if (x.quantized.defined() && (delayed(x_fprop) || delayed(x_wgrad)))
      context.register_forward(fp8_.input, *recipe);
    if (delayed(w_fprop) || (saved && delayed(w_dgrad))) context.register_forward(fp8_.weight, *recipe);
  }
  drop_unread_weights(w_fprop, w_dgrad);
  if (saved) cast_for_both(context, x, OperandRole::input, Gemm::fprop, x_fprop, Gemm::wgrad, x_wgrad);
  const GemmOperand a = read(context, x, x_fprop, OperandRole::input, Gemm::fprop),
                    b = read_weight(context, w_fprop, Gemm::fprop);
  Tensor y = backend_.allocate(context.high_precision(), {a.rows(), options_.out_features});
  backend_.gemm(Gemm::fprop, a, b, full_bias(), false, y);
  if (!context.replays()) record(Gemm::fprop, recipes, a, b, y);
  if (saved) {
    *saved = {};
    saved->rows = y.rows();
    saved->recipes = recipes;
    saved->channels = channels;
    for (std::size_t i = 0; i < recipes.size(); ++i) saved->in_fp8[i] = recipes[i].has_value();
    saved->x_again = forms_input_again(recipes);
    if (!saved->x_again) {
      keep(read(context, x, x_wgrad, OperandRole::input, Gemm::wgrad), saved->x_fp8, saved->x);
      if (saved->x_fp8.transposed) saved->x_fp8.bytes = {};  // fprop alone has read them
    } else if (x_wgrad.kind == Reading::Kind::delayed) {
      saved->x_quantizer = {x.quantizer.format, x.quantizer.scale, {}, {}};
    }
    keep(read_weight(context, w_dgrad, Gemm::dgrad), saved->w_fp8, saved->w);
    if (is_delayed_at(calibrated, kDgrad) || is_delayed_at(calibrated, kWgrad))
      saved->calibration = slot_recipe(calibrated);
  }
  return y;
}

Linear::Forms Linear::gradient_forms(const Recipes& recipes) const {
  Forms forms;
  for (const Gemm gemm : {Gemm::dgrad, Gemm::wgrad})
    forms.add(reading_of(recipes, OperandRole::grad_output, gemm).kind == Reading::Kind::delayed);
  forms.real = forms.real || bias_;  // its gradient sums the unquantised dy
  return forms;
}

Output Linear::make_output_gradient(Context& context, const Saved& saved, const Tensor& values) {
  Output dy;
  dy.values = values;
  const Forms forms = gradient_forms(saved.recipes);
  if (forms.fp8 || saved.calibration) {
    const Recipe recipe = saved.calibration ? *saved.calibration : *slot_recipe(saved.recipes);
    const DType format = gradient_dtype(std::get<DelayedScaling>(recipe));
    dy.quantized = allocate_quantized(backend_, format, saved.rows, options_.out_features);
    dy.quantizer = make_quantizer(*fp8_.grad_output, format, true);
    if (saved.calibration) dy.quantizer.counters = Tensor();
  }
  if (!dy.values && (forms.real || context.counts_exponents()))
    dy.values = backend_.allocate(context.high_precision(), {saved.rows, options_.out_features});
  dy.casts = std::make_shared<CastCache>();
  return dy;
}

Output Linear::cast_output_gradient(Context& context, const Saved& saved, const Tensor& dy) {
  if (!gradient_forms(saved.recipes).fp8 && !saved.calibration)
    return Output{dy, {}, {}, std::make_shared<CastCache>()};
  Output output = make_output_gradient(context, saved, dy);
  output.values = Tensor();
  backend_.cast(dy, output);
  output.values = dy;
  return output;
}

Output Linear::cast_output_gradient(Context& context, const Saved& saved, const Output& dy) {
  return dy.quantized.defined() ? dy : cast_output_gradient(context, saved, dy.values);
}

void Linear::backward(Context& context, const Saved& saved, const Output& dy, const Tensor& dx,
                      bool accumulate_dx) {
  backward_input(context, saved, dy, dx, accumulate_dx);
  backward_weight(context, saved, dy, {});
}

void Linear::backward_input(Context& context, const Saved& saved, const Output& dy, const Tensor& dx,
                            bool accumulate_dx) {
  require_shape(dy, saved.rows, options_.out_features, "output gradient");
  if (gradient_forms(saved.recipes).fp8 || saved.calibration) {
    context.register_backward(fp8_.grad_output,
                              saved.calibration ? *saved.calibration : *slot_recipe(saved.recipes));
    if (context.counts_exponents()) count_exponents(dy.values, *fp8_.grad_output);
  }
  const Reading dy_dgrad = reading_of(saved.recipes, OperandRole::grad_output, Gemm::dgrad),
                dy_wgrad = reading_of(saved.recipes, OperandRole::grad_output, Gemm::wgrad);
  if (dx) {
    cast_for_both(context, dy, OperandRole::grad_output, Gemm::dgrad, dy_dgrad, Gemm::wgrad, dy_wgrad);
    const GemmOperand a = read(context, dy, dy_dgrad, OperandRole::grad_output, Gemm::dgrad),
                      b = kept(saved.w_fp8, saved.w);
    gradient_gemm(Gemm::dgrad, a, b, saved.channels.inverse, accumulate_dx, dx);
    record(Gemm::dgrad, saved.recipes, a, b, dx);
  }
}

void Linear::backward_weight(Context& context, const Saved& saved, const Output& dy,
                             const Output& input_again) {
  const Reading dy_wgrad = reading_of(saved.recipes, OperandRole::grad_output, Gemm::wgrad);
  const GemmOperand a = read(context, dy, dy_wgrad, OperandRole::grad_output, Gemm::wgrad),
                    b = saved.x_again ? kept(input_again.quantized, input_again.values)
                                      : kept(saved.x_fp8, saved.x);
  require(b.values || b.transposed,
          "linear: wgrad's input was not kept. Hint: write it again where make_input_again says");
  gradient_gemm(Gemm::wgrad, a, b, saved.channels.scale, weight_->begin_accumulation(), weight_->gradient);
  record(Gemm::wgrad, saved.recipes, a, b, weight_->gradient);
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
