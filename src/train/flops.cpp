#include "train/flops.h"

#include <string>

namespace quaver {
namespace {

class WeightCounter : public ModuleVisitor {
 public:
  void linear(const std::string& /*name*/, Linear& linear) override {
    weights += static_cast<double>(linear.options().in_features * linear.options().out_features);
  }

  double weights = 0;
};

}  // namespace

double linear_weights(LanguageModel& model) {
  WeightCounter counter;
  model.visit("", counter);
  return counter.weights;
}

double training_flops_per_token(LanguageModel& model, std::int64_t length) {
  const ModelConfig& config = model.config();
  return 6 * linear_weights(model) +
         6.0 * static_cast<double>(length * config.heads * config.head_dim * config.layers);
}

}  // namespace quaver
