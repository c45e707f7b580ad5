/// y = down_proj(act(gate_proj x) * up_proj x), or down_proj(gelu(up_proj x)).
#pragma once

#include <memory>

#include "quaver/backend.h"
#include "quaver/linear.h"
#include "quaver/model_config.h"
#include "quaver/module.h"

namespace quaver {

class FeedForward : public Module {
 public:
  FeedForward(Backend& backend, const ModelConfig& config);

  /// What the activation reads; columns of one matrix when packed: [gate | up].
  struct Projections {
    Tensor gate, up;  ///< gate: absent for gelu
  };
  /// Where their gradients are written.
  struct Gradients {
    Output packed;  ///< absent when separate
    Output gate, up;
  };
  struct Saved {
    Linear::Saved gate_up_proj, gate_proj, up_proj, down_proj;
    Projections projected;  ///< from which backward also forms down_proj's input, where that was not kept
  };

  /// Where the norm before the feed-forward should write.
  Output make_input(Context& context, std::int64_t rows);
  Tensor forward(Context& context, const Output& x, Saved* saved);
  /// Where the producer of dy should write it; `values`: in high precision.
  Output make_output_gradient(Context& context, const Saved& saved, const Tensor& values);
  /// Writes dx from dy [M, width], whose values are there.
  void backward(Context& context, const Saved& saved, const Output& dy, const Tensor& dx);
  void visit(const std::string& name, ModuleVisitor& visitor) override;

 private:
  Projections project(Context& context, const Output& x, Saved* saved);
  Gradients make_gradients(Context& context, const Saved& saved);
  void project_backward(Context& context, const Saved& saved, const Gradients& gradients, const Tensor& dx);

  Backend& backend_;
  Activation kind_;
  std::int64_t features_;                        ///< hidden ones
  std::unique_ptr<Linear> gate_up_proj_;         // packed
  std::unique_ptr<Linear> gate_proj_, up_proj_;  // separate; gelu has no gate_proj_
  Linear down_proj_;
};

}  // namespace quaver
