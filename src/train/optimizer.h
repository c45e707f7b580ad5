/// AdamW over the parameters of a module.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "quaver/module.h"
#include "quaver/scaling.h"
#include "quaver/tensor.h"

namespace quaver {

class Linear;

class AdamW {
 public:
  struct Options {
    float beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f;
    float weight_decay = 0.1f;   ///< of matrices; gains and biases do not decay
    float clip = 1;              ///< largest norm of all gradients together; 0: no clipping
    std::uint64_t seed = 0;      ///< of the rounding of what is not f32
    DType moments = DType::f32;  ///< f32, bf16 or e4m3
  };

  /// The backend and the module must outlive the optimizer.
  AdamW(Backend& backend, Module& module, const Options& options);

  /// The norm of all gradients together, before clipping.
  float gradient_norm();

  /// Given the norm of the gradients on the device (f32[1]) before any update: may make it NaN to refuse the step.
  using NormCheck = std::function<void(const Tensor& norm)>;

  /// Clips, updates every parameter and clears its gradient. The copies of weights that modules' products read
  /// (`Linear::next_weight_copies`) are written in the same pass. Returns the norm before clipping. When that is
  /// not usable (`is_usable_norm`), nothing is written and the step does not count.
  float step(float lr, const NormCheck& check = {});
  /// The two halves of `step`: everything is handed to the device; the norm comes back, for which the host waits.
  void begin_step(float lr, const NormCheck& check = {});
  float end_step();

  /// Forgets the gradients of a step that was not taken, and that its weights were cast: their amaxes may have been
  /// taken back.
  void drop_gradients();

  /// Whether a norm that `step` returned stands for a step that was taken.
  bool accepts(float norm) const;

  /// Steps taken.
  std::int64_t steps() const { return steps_; }
  /// For restoring a state, beside the moments.
  void set_steps(std::int64_t steps) { steps_ = steps; }

  /// A parameter and its moments.
  struct Entry {
    std::string name;
    Parameter* parameter;
    Tensor m, v;                     ///< as in AdamWTensor, of the parameter's shape
    Tensor m_scales, v_scales;       ///< absent unless the moments are e4m3
    std::uint64_t noise_stream = 0;  ///< hash of the name
    Linear* reader = nullptr;        ///< the first whose weight it is; null: none
  };
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  class Collector;
  /// Writes the norm to norm_.
  void measure_norm();

  Backend& backend_;
  Options options_;
  std::vector<Entry> entries_;
  Tensor norm_;
  std::vector<WeightCopies> copies_;  // of the step that has begun, by entry
  std::int64_t steps_ = 0;
};

}  // namespace quaver
