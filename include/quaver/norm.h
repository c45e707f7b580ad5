/// RMSNorm and LayerNorm, writing FP8 directly for the Linear that reads them.
#pragma once

#include <memory>

#include "quaver/autocast.h"
#include "quaver/backend.h"
#include "quaver/module.h"
#include "quaver/scaling.h"

namespace quaver {

/// y = norm(x) over the columns of x [M, width]. Statistics in FP32.
class Norm : public Module {
 public:
  struct Saved {
    Tensor x;           ///< the input; the sum, where the norm forms one
    Tensor mean, rstd;  ///< f32[M]; mean for LayerNorm only
  };
  /// Writes y in the forms that `y` asks for (usually `linear.make_input(context, rows)`). `saved` may be
  /// null.
  virtual void forward(const NormInput& x, const Output& y, Saved* saved) = 0;
  /// dx (+)= gradient, in the forms that `dx` asks for; gains and biases accumulate.
  virtual void backward(const Saved& saved, const Tensor& dy, const Output& dx, bool accumulate_dx) = 0;
};

/// y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + epsilon) (arXiv 1910.07467).
class RmsNorm final : public Norm {
 public:
  RmsNorm(Backend& backend, std::int64_t width, float epsilon = 1e-6f);  ///< gain starts at 1
  void forward(const NormInput& x, const Output& y, Saved* saved) override;
  void backward(const Saved& saved, const Tensor& dy, const Output& dx, bool accumulate_dx) override;
  void visit(const std::string& name, ModuleVisitor& visitor) override;

 private:
  Backend& backend_;
  float epsilon_;
  Parameter gain_;
};

/// y = (x - mean) * rstd * gain + bias (arXiv 1607.06450).
class LayerNorm final : public Norm {
 public:
  LayerNorm(Backend& backend, std::int64_t width, float epsilon = 1e-5f);  ///< gain starts at 1, bias at 0
  void forward(const NormInput& x, const Output& y, Saved* saved) override;
  void backward(const Saved& saved, const Tensor& dy, const Output& dx, bool accumulate_dx) override;
  void visit(const std::string& name, ModuleVisitor& visitor) override;

 private:
  Backend& backend_;
  float epsilon_;
  Parameter gain_, bias_;
};

}  // namespace quaver
