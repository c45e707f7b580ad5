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
  bool gradients_enabled() const { return no_gradient_scopes_ == 0; }

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
  struct Registered {
    std::shared_ptr<ScalingSlot> slot;
    Recipe recipe;
  };
  static void add(std::vector<Registered>& list, const std::shared_ptr<ScalingSlot>& slot,
                  const Recipe& recipe);
  void update(std::vector<Registered>& list, bool gradients);

  ScaleUpdater& updater_;
  DType high_precision_;
  std::vector<std::optional<Recipe>> scopes_;
  int no_gradient_scopes_ = 0;
  bool in_backward_pass_ = false;
  std::uint64_t noise_seed_ = 0, noise_position_ = 0;
  std::vector<Registered> forward_, backward_;
};

/// While it lives, modules run in FP8 under `recipe` (enabled) or in high precision (not enabled). Scopes
/// nest; the innermost decides. Leaving the outermost scope updates the forward slots of every module that
/// ran, provided gradients are enabled; a new scale is first used by the next cast. Leaving by an exception
/// updates nothing.
class Autocast {
 public:
  Autocast(Context& context, bool enabled, Recipe recipe = DelayedScaling{});
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
