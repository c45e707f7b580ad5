/// y[M,N] = x[M,K] w[N,K]^T (+ b): the module whose three GEMMs run in FP8.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "quaver/autocast.h"
#include "quaver/gemm_policy.h"
#include "quaver/module.h"
#include "quaver/scaling.h"

namespace quaver {

struct GemmOperand;

/// The types in which one of a Linear's GEMMs last ran, and how often it ran as its policy says: with quantised operands
/// (FP8, or FP4 under NVFP4), and otherwise.
struct GemmRecord {
  DType a = DType::f32, b = DType::f32, out = DType::f32;
  std::int64_t fp8_runs = 0, other_runs = 0;
  std::string recipe = {};  ///< of the last run; empty in high precision
  std::string kernel =
      {};  ///< of the last run whose recipe, types or rows were new (Backend::last_gemm_kernel)
};

/// Powers of two, one per input feature, for `Linear::smooth_input`. Both absent: none.
struct ChannelScales {
  Tensor scale, inverse;  ///< f32[in_features]
  explicit operator bool() const { return scale.defined(); }
};

/// FP8 state of one Linear. A slot exists once the module ran under a recipe (or its state was loaded). Recipes other than
/// delayed scaling use its counters alone.
struct Fp8State {
  std::shared_ptr<ScalingSlot> input, weight, grad_output;
  std::optional<Recipe>
      recipe;  ///< of the last forward with one: DelayedScaling if any of its GEMMs follows that
  std::array<GemmRecord, 3> gemms;  ///< fprop, dgrad, wgrad
  bool owns_input = true;           ///< false: `input` belongs to the sibling that reads the same tensor
  ChannelScales channels = {};      ///< of the newest training forward that smoothed its input
};

class Linear : public Module {
 public:
  struct Options {
    std::int64_t in_features = 0, out_features = 0;
    /// Output columns [bias_begin, bias_begin + bias_count) have a bias. 0: none.
    std::int64_t bias_begin = 0, bias_count = 0;
  };
  /// Parameters are allocated, not initialised. `weight`, if given ([out_features, in_features]), is shared
  /// with its owner (a tied head) and not visited here. The backend must outlive the module.
  Linear(Backend& backend, const Options& options, std::shared_ptr<Parameter> weight = nullptr);

  /// What forward keeps for backward: the input for wgrad and the weight for dgrad, each in the one form in which that
  /// GEMM reads it.
  struct Saved;

  /// Which of its GEMMs follow a recipe inside an enabled scope, and which; at first all follow the scope's. DelayedScaling
  /// recipes of one module must be equal: they share its slots. Operands are cast only for the GEMMs that
  /// read them in FP8, and kept in high precision only for those that do not. Set it between a backward and the
  /// next forward, for modules that share an input all at once.
  void set_policy(const GemmPolicies& policy) { *policy_ = policy; }
  const GemmPolicies& policy() const { return *policy_; }
  /// Throws Error(usage), as forward would, if the backend does not run what some GEMM follows in a scope of `scope` (nothing:
  /// high precision).
  void require_recipes(const std::optional<Recipe>& scope) const;
  /// Tells this module's random numbers from those of others (CastNoise); at first 0. A hash of its name will do.
  void set_noise_stream(std::uint64_t stream) { noise_stream_ = stream; }
  /// How many modules read one and the same input: this one, and those that share with it.
  std::int64_t input_readers() const { return static_cast<std::int64_t>(input_readers_->size()); }

  /// Both read one tensor, which is quantised once: this module's input slot is the leader's. Call before the
  /// first forward.
  void share_input_of(Linear& leader);

  /// After Smooth-SwiGLU (arXiv 2409.12517), for an input of which single features are far larger than the others: every feature
  /// i is divided by s_i before it is cast (Backend::column_scales), and the weight's column i, in its compute copies, multiplied
  /// by it. Powers of two are exact: y, dx and dw differ by the roundings to FP8 alone. What is cast is below 2, which is the
  /// amax that is staged. It takes effect where fprop or wgrad reads the input with one scale for the tensor (delayed and current
  /// scaling), and then for all GEMMs. In training s comes from the input itself; evaluation uses that of the newest training
  /// forward (none before there was one), so that rows do not depend on each other. The weight is then cast by current scaling
  /// whatever the recipe, once per training forward. Throws Error(usage) for an input that other modules read, and for a
  /// backend without column scales.
  void smooth_input(bool smooth);
  bool smooths_input() const { return smooths_input_; }
  /// Whether it takes effect inside an enabled scope of this recipe.
  bool smooths_under(const Recipe& scope) const;

  /// For an input whose producer can write it again in backward, from what its own backward reads: an activation, a gate.
  /// Forward then keeps nothing of it for wgrad where fprop and wgrad both read the FP8 of delayed scaling, if `fp8` (the scale alone is
  /// kept), or both high precision, if `real`. Other recipes, and smoothed inputs, are kept. Throws Error(usage) for an input that other
  /// modules read.
  void form_input_again(bool fp8, bool real);

  /// Where the producer of x [rows, in_features] should write it under the context's precision: FP8 bytes
  /// with this module's input quantizer, high precision, or both, as the GEMMs that will read it ask (wgrad only
  /// while gradients are enabled; siblings included).
  Output make_input(Context& context, std::int64_t rows);
  /// The same for an x that exists in high precision: casts it if the context asks for FP8.
  Output cast_input(Context& context, const Tensor& x);

  /// y of the input as `make_input` described it, filled. `saved` may be null (evaluation).
  Tensor forward(Context& context, const Output& input, Saved* saved);

  /// Where the producer of dy [rows, out_features] should write it; into `values` what others read of it.
  Output make_output_gradient(Context& context, const Saved& saved, const Tensor& values = {});
  Output cast_output_gradient(Context& context, const Saved& saved, const Tensor& dy);
  /// dy itself where its producer cast it, or no cast is wanted; else its values are cast.
  Output cast_output_gradient(Context& context, const Saved& saved, const Output& dy);

  /// dx (+)= dy w (skipped when `dx` is absent); weight.gradient += dy^T x; bias.gradient += column sums of
  /// the unquantised dy.
  void backward(Context& context, const Saved& saved, const Output& dy, const Tensor& dx,
                bool accumulate_dx = false);

  /// The same in two halves, for a producer that forms the input again in between: `make_input_again` says where, in the one
  /// form that wgrad reads; absent where the input was kept.
  void backward_input(Context& context, const Saved& saved, const Output& dy, const Tensor& dx,
                      bool accumulate_dx = false);
  Output make_input_again(Context& context, const Saved& saved);
  void backward_weight(Context& context, const Saved& saved, const Output& dy, const Output& input_again);

  void visit(const std::string& name, ModuleVisitor& visitor) override;

  const Options& options() const { return options_; }
  Parameter& weight() { return *weight_; }
  Parameter* bias() { return bias_.get(); }  ///< null when there is none; f32[bias_count]
  Fp8State& fp8() { return fp8_; }
  const Fp8State& fp8() const { return fp8_; }
  /// Creates (or, when the history length changed, replaces) the slots for a recipe. Loading a state calls it
  /// too.
  void prepare_fp8(const Recipe& recipe);

  /// For an optimizer that casts while it updates: the copies of the weight that the last forward read, to be written from
  /// the next value. FP8 under delayed scaling, whose scale is known by now, and BF16; other recipes read the whole weight
  /// before they cast it, and cast for themselves. Nothing when no forward ran since the last such call.
  WeightCopies next_weight_copies();
  /// They were written from the weight's present version, and serve the next forwards. What they staged and counted becomes
  /// part of the slot when the scope of the first training forward that reads them ends, as if that forward had cast.
  void weight_copied_ahead(const WeightCopies& copies);

  /// How often the weight was cast or converted: once per optimizer step and precision.
  std::int64_t weight_casts() const { return weight_casts_; }

 private:
  /// The weight in a compute precision, kept until the master changes.
  template <typename T>
  struct WeightCopy {
    T copy;
    std::uint64_t version = 0;
    DType dtype = DType::f32;
    bool staged = false;  ///< its amax was staged: a copy made by evaluation does not serve training
    bool ahead = false;   ///< an optimizer made it, and no forward that it is meant for has read it
  };
  /// The weight under one cast of a recipe.
  struct CastWeight {
    OperandCast cast;
    QuantizedTensor copy;
    std::uint64_t version = 0;  ///< of the master; 0: to be cast again
    bool counted = false;       ///< a copy made by evaluation is not, and does not serve training
  };
  /// The forms in which an operand is wanted from its producer: by delayed scaling's quantizer, and in high precision (from
  /// which other recipes cast).
  struct Forms {
    bool fp8 = false, real = false;
    void add(bool in_fp8) { (in_fp8 ? fp8 : real) = true; }
  };
  using Recipes = std::array<std::optional<Recipe>, 3>;  // of fprop, dgrad, wgrad
  /// The recipe that each GEMM follows where the scope's is `scope`.
  static Recipes recipes_for(const std::optional<Recipe>& scope, const GemmPolicies& policy);
  /// The recipe that each GEMM follows now.
  Recipes recipes_of(const Context& context) const { return recipes_for(context.recipe(), *policy_); }
  /// What the producer of the input writes; what the readers read. They differ where the input is smoothed in between.
  Forms input_forms(const Context& context) const;
  Forms reader_forms(const Context& context) const;
  Output make_input(Context& context, std::int64_t rows, const Forms& forms);
  /// Whether backward forms the input again after a training forward under these recipes.
  bool forms_input_again(const Recipes& recipes) const;
  Output cast_input(Context& context, const Tensor& x, const Forms& forms);
  Forms gradient_forms(const Recipes& recipes) const;
  /// The DelayedScaling of those readers of the input that follow one; there is one.
  const DelayedScaling& input_recipe(const Context& context) const;
  /// How a GEMM reads an operand.
  struct Reading;
  Reading reading_of(const Recipes& recipes, OperandRole role, Gemm gemm) const;
  ScalingSlot& slot_of(OperandRole role);
  CastNoise noise_of(const Context& context, OperandRole role, Gemm gemm) const;
  void quantize(Context& context, const Tensor& x, const OperandCast& cast, OperandRole role, Gemm gemm,
                const QuantizedTensor& q);
  /// Where two GEMMs read different casts of an operand, makes both for its CastCache.
  void cast_for_both(Context& context, const Output& operand, OperandRole role, Gemm first_gemm,
                     const Reading& first, Gemm second_gemm, const Reading& second);
  /// The operand as `reading` says, from what the producer wrote.
  GemmOperand read(Context& context, const Output& operand, const Reading& reading, OperandRole role,
                   Gemm gemm);
  GemmOperand read_weight(Context& context, const Reading& reading, Gemm gemm);
  void record(Gemm gemm, const Recipes& recipes, const GemmOperand& a, const GemmOperand& b,
              const Tensor& out);
  const QuantizedTensor& fp8_weight(Context& context);
  const QuantizedTensor& cast_weight(Context& context, const Reading& reading, Gemm gemm);
  Quantizer input_quantizer(Context& context);
  void count_exponents(const Tensor& x, ScalingSlot& slot);
  /// In a calibrating scope: stages the amaxes of what would have been cast under `recipes`.
  void calibrate(Context& context, const Output& x, const Recipes& recipes, bool trains);
  const Tensor& real_weight(Context& context);
  bool smooths(const Recipes& recipes) const;
  /// x with its columns divided by `channels`, which it chooses, in the forms that the readers read.
  Output smooth(Context& context, const Output& x, ChannelScales& channels);
  /// From now on the weight's copies are multiplied by these.
  void use_channels(const ChannelScales& channels);
  /// The weight as its copies hold it: the master, or its columns times the channel scales.
  Tensor weight_values();
  /// out (+)= the product, its columns times `factors` if there are any.
  void gradient_gemm(Gemm gemm, const GemmOperand& a, const GemmOperand& b, const Tensor& factors,
                     bool accumulate, const Tensor& out);
  /// Forgets an FP8 copy made ahead that nobody read, and what it staged.
  void discard_ahead();
  void drop_unread_weights(const Reading& fprop, const Reading& dgrad);
  Tensor full_bias();

  Backend& backend_;
  Options options_;
  std::shared_ptr<Parameter> weight_;
  bool owns_weight_;
  std::unique_ptr<Parameter> bias_;
  Linear* input_leader_ = nullptr;
  std::shared_ptr<GemmPolicies> policy_;
  /// The policies of all modules that read this one's input, itself included; one list for all of them.
  std::shared_ptr<std::vector<std::shared_ptr<const GemmPolicies>>> input_readers_;
  Fp8State fp8_;
  Recipes described_;  ///< whose descriptions stand in fp8_.gemms: they are made once, not for every product
  WeightCopy<QuantizedTensor> fp8_weight_;
  WeightCopy<Tensor> real_weight_;
  Tensor weight_channels_;  ///< with which these and `cast_weights_` were multiplied; absent: with none
  bool smooths_input_ = false, forms_fp8_again_ = false, forms_real_again_ = false;
  std::vector<CastWeight> cast_weights_;  ///< of recipes other than delayed scaling
  std::uint64_t noise_stream_ = 0;
  Tensor full_bias_;
  std::uint64_t full_bias_version_ = 0;
  std::int64_t weight_casts_ = 0;
  std::array<std::int64_t, 3> recorded_rows_{};  ///< of the newest run of each GEMM
};

struct Linear::Saved {
  std::int64_t rows = 0;
  std::array<bool, 3> in_fp8{};  ///< which GEMMs follow a recipe, as it was in forward
  Tensor x;                      ///< for a wgrad that reads it in high precision
  QuantizedTensor x_fp8;         ///< for a wgrad that reads it quantised
  bool x_again = false;          ///< neither: wgrad takes it from make_input_again
  Quantizer
      x_quantizer;  ///< how it is cast again; without a scale: in high precision. The scale is the slot's own, which the
                    ///< end of the Autocast scope changes: whoever keeps this longer copies it
  Tensor w;                ///< for a dgrad that reads it in high precision
  QuantizedTensor w_fp8;   ///< for a dgrad that reads it quantised
  Recipes recipes;         ///< of fprop, dgrad and wgrad
  ChannelScales channels;  ///< by which x was divided and w multiplied
  /// The output gradient is cast for its amax alone, under this recipe.
  std::optional<Recipe> calibration;
};

}  // namespace quaver
