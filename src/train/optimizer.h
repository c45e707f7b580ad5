/// AdamW over the parameters of a module.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quaver/module.h"
#include "quaver/tensor.h"

namespace quaver {

class AdamW {
 public:
  struct Options {
    float beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f;
    float weight_decay = 0.1f;  ///< of matrices; gains and biases do not decay
    float clip = 1;             ///< largest norm of all gradients together; 0: no clipping
  };

  /// The backend and the module must outlive the optimizer.
  AdamW(Backend& backend, Module& module, const Options& options);

  /// The norm of all gradients together, before clipping.
  float gradient_norm();

  /// Clips, updates every parameter and clears its gradient. Returns the norm before clipping. When that is
  /// not finite, nothing is written and the step does not count.
  float step(float lr);

  /// Steps taken.
  std::int64_t steps() const { return steps_; }
  /// For restoring a state, beside the moments.
  void set_steps(std::int64_t steps) { steps_ = steps; }

  /// A parameter and its moments.
  struct Entry {
    std::string name;
    Parameter* parameter;
    Tensor m, v;  ///< f32, of the parameter's shape
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
  std::int64_t steps_ = 0;
};

}  // namespace quaver
