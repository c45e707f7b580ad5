/// Precision scopes: which modules run in FP8, under which recipe, and when scales are updated.
///
/// State belongs to objects: a Context is the precision state of one thread of execution; nothing is global,
/// and two contexts (two models, two recipes) live side by side.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "quaver/recipe.h"
#include "quaver/scaling.h"

namespace quaver {

/// What a forward pass needs to run again in backward with the same bits: its scope and noise, and what it cast with, in
/// the order in which it asked.
struct ForwardRecord {
  std::optional<Recipe> recipe;  ///< of the innermost scope
  bool calibrating = false;
  std::uint64_t noise_seed = 0, noise_position = 0;
  std::vector<Tensor> scales;            ///< f32[1] each: of inputs
  std::vector<QuantizedTensor> weights;  ///< copies that later steps may have replaced
};

/// The precision state that modules consult while they run. Not thread-safe: one context, one thread.
class Context {
 public:
  /// `updater` (a Backend) runs scale updates and must outlive the context. `high_precision` (bf16 or f32) is
  /// the type of activations, and of GEMM operands outside FP8.
  explicit Context(ScaleUpdater& updater, DType high_precision = DType::bf16);
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  DType high_precision() const { return high_precision_; }
  /// The recipe of the innermost scope when that scope is enabled; nothing outside scopes and in a disabled
  /// one.
  const std::optional<Recipe>& recipe() const;
  /// The recipe of the innermost scope when that one calibrates: amaxes are recorded for it, and no GEMM runs in
  /// FP8 (`recipe()` is empty).
  const std::optional<Recipe>& calibration() const;
  /// The one of `recipe()` and `calibration()` that there is: what operands are cast for.
  const std::optional<Recipe>& casting_recipe() const { return recipe() ? recipe() : calibration(); }
  bool gradients_enabled() const { return no_gradient_scopes_ == 0; }
  /// Whether a forward is run again for its backward.
  bool replays() const { return replayed_ != nullptr; }
  /// Whether forward casts stage amaxes and count: neither in evaluation nor when a forward is run again.
  bool leaves_trace() const { return gradients_enabled() && !replays(); }

  /// While true, every cast that leaves a trace also counts the exponents of what it casts (ScalingSlot::exponents, of
  /// whose content the caller takes care). Producers then write high precision too: for some steps, not for all.
  void count_exponents(bool count) { counts_exponents_ = count; }
  bool counts_exponents() const { return counts_exponents_ && leaves_trace(); }

  /// The scale to cast an input of `slot` with: the slot's, or that of the first time when a forward is run again.
  Tensor input_scale(const ScalingSlot& slot);
  /// The FP8 copy of a weight that the first run of this forward read; absent outside a replay.
  QuantizedTensor replayed_weight();
  /// Called by a module that reads this copy of its weight in a forward.
  void record_weight(const QuantizedTensor& copy);

  /// Seed and position of the random numbers that recipes cast with. Equal ones give equal bits, so a training
  /// loop sets a position for every micro-batch; at first 0, 0.
  void set_noise(std::uint64_t seed, std::uint64_t position) {
    noise_seed_ = seed, noise_position_ = position;
  }
  std::uint64_t noise_seed() const { return noise_seed_; }
  std::uint64_t noise_position() const { return noise_position_; }

  /// Called under DelayedScaling by a module that cast into `slot` in its forward (backward) pass: registers the slot for the next
  /// update, once.
  void register_forward(const std::shared_ptr<ScalingSlot>& slot, const Recipe& recipe);
  void register_backward(const std::shared_ptr<ScalingSlot>& slot, const Recipe& recipe);

 private:
  friend class Autocast;
  friend class NoGradients;
  friend class BackwardPass;
  friend class RecordForward;
  friend class ReplayForward;
  struct Scope {
    std::optional<Recipe> fp8, calibration;  // one of them, or none
  };
  static Scope make_scope(const std::optional<Recipe>& recipe, bool calibrating);
  struct Registered {
    std::shared_ptr<ScalingSlot> slot;
    Recipe recipe;
    friend bool operator==(const Registered&, const Registered&) = default;
  };
  /// The slots that a scope's casts used, once each. The updates of the last scope that had any are kept with its list: the
  /// next one is mostly the same, and a model's slots are a thousand tensors to copy.
  struct Registrations {
    std::vector<Registered> list, last;
    std::vector<ScaleUpdate> updates;  // of `last`
  };
  static void add(std::vector<Registered>& list, const std::shared_ptr<ScalingSlot>& slot,
                  const Recipe& recipe);
  void update(Registrations& registered, bool gradients);

  ScaleUpdater& updater_;
  DType high_precision_;
  std::vector<Scope> scopes_;
  int no_gradient_scopes_ = 0;
  bool in_backward_pass_ = false, counts_exponents_ = false;
  ForwardRecord* recorded_ = nullptr;
  const ForwardRecord* replayed_ = nullptr;
  std::size_t next_scale_ = 0, next_weight_ = 0;  // of replayed_
  std::uint64_t noise_seed_ = 0, noise_position_ = 0;
  Registrations forward_, backward_;
};

/// While it lives, modules run in FP8 under `recipe` (enabled) or in high precision (not enabled). Scopes
/// nest; the innermost decides. Leaving the outermost scope updates the forward slots of every module that
/// ran, provided gradients are enabled; a new scale is first used by the next cast. Leaving by an exception
/// updates nothing.
///
/// A scope that is not enabled and `calibrating` computes in high precision and records the amaxes that `recipe` would
/// have seen: the slots are updated as in FP8, so that a later enabled scope begins with scales that fit.
class Autocast {
 public:
  Autocast(Context& context, bool enabled, Recipe recipe = DelayedScaling{}, bool calibrating = false);
  ~Autocast() noexcept(false);
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  Context& context_;
  int exceptions_at_entry_;
};

/// While it lives, forward passes are evaluation: scales are used as they are and no amax is staged or
/// counted.
class NoGradients {
 public:
  explicit NoGradients(Context& context) : context_(context) { ++context_.no_gradient_scopes_; }
  ~NoGradients() { --context_.no_gradient_scopes_; }
  NoGradients(const NoGradients&) = delete;
  NoGradients& operator=(const NoGradients&) = delete;

 private:
  Context& context_;
};

/// While it lives, forward passes write down in `record` what they need to be run again. Lies within one outermost
/// Autocast scope (or in none); does not nest. The recorded scales are the slots' own until `keep_scales` copies them,
/// which must happen before that scope ends.
class RecordForward {
 public:
  RecordForward(Context& context, ForwardRecord& record);
  ~RecordForward() { context_.recorded_ = nullptr; }
  RecordForward(const RecordForward&) = delete;
  RecordForward& operator=(const RecordForward&) = delete;

 private:
  Context& context_;
};

/// While it lives, the calls that were recorded are made again, in the same order: under the same scope, with the
/// same scales and weights, and without a trace. Their results are the same bits. Does not nest.
class ReplayForward {
 public:
  ReplayForward(Context& context, const ForwardRecord& record);
  ~ReplayForward();
  ReplayForward(const ReplayForward&) = delete;
  ReplayForward& operator=(const ReplayForward&) = delete;

 private:
  Context& context_;
  std::uint64_t outer_noise_seed_, outer_noise_position_;
};

/// One backward pass: leaving it updates the backward slots of every module whose backward ran in FP8. Does
/// not nest.
class BackwardPass {
 public:
  explicit BackwardPass(Context& context);
  ~BackwardPass() noexcept(false);
  BackwardPass(const BackwardPass&) = delete;
  BackwardPass& operator=(const BackwardPass&) = delete;

 private:
  Context& context_;
  int exceptions_at_entry_;
};

}  // namespace quaver
