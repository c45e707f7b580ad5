#include "train/step_memory.h"

#include <string>

#include "train/fp8_policy.h"
#include "train/loss.h"
#include "train/masters.h"
#include "train/optimizer.h"
#include "train/run_precision.h"
#include "train/synthetic_batch.h"
#include "train/trainer.h"

namespace quaver {
namespace {

/// Bytes that came into use since the last call.
class Growth {
 public:
  explicit Growth(const Backend& backend) : backend_(backend), last_(backend.memory_use().in_use) {}
  std::int64_t operator()() {
    const std::int64_t now = backend_.memory_use().in_use, grown = now - last_;
    last_ = now;
    return grown;
  }

 private:
  const Backend& backend_;
  std::int64_t last_;
};

std::int64_t bytes_of(const Tensor& tensor) {
  return tensor ? tensor.elements() * static_cast<std::int64_t>(size_of(tensor.dtype())) : 0;
}

class GradientBytes : public ModuleVisitor {
 public:
  void parameter(const std::string& /*name*/, Parameter& parameter) override {
    bytes += bytes_of(parameter.gradient);
  }
  std::int64_t bytes = 0;
};

}  // namespace

StepMemory measure_step_memory(const std::shared_ptr<Backend>& backend, const RunConfig& config) {
  StepMemory memory;
  const std::int64_t before = backend->memory_use().in_use;
  Growth growth(*backend);
  LanguageModel model(backend, config.model, config.train.seed);
  store_masters(model, stored_dtype(config.optimizer.masters));
  apply_fp8_policy(model, config.fp8, config.model.layers);
  GradientBytes gradients;
  model.visit("", gradients);
  memory.gradients = gradients.bytes;
  memory.weights = growth() - memory.gradients;
  AdamW optimizer(*backend, model, optimizer_options(config));
  memory.optimizer = growth();

  Context context(*backend, activation_dtype(config.precision));
  const std::optional<Recipe> recipe = run_recipe(config);
  const DeviceBatch batch = upload_batch(*backend, synthetic_batch(config, 0));
  const Tensor losses = backend->allocate(DType::f32, batch.targets.shape());
  growth();
  {
    const NoGradients evaluation(context);
    forward_logits(model, context, recipe, batch.tokens, nullptr);
  }
  memory.weight_copies = growth();
  {
    LanguageModel::Saved saved;
    const Tensor logits = forward_logits(model, context, recipe, batch.tokens, &saved);
    memory.logits = bytes_of(logits);
    memory.activations = growth() - memory.logits;
  }
  accumulate_gradients(model, context, recipe, batch, 1.0f / static_cast<float>(losses.elements()), losses);
  memory.peak = backend->memory_use().peak - before;
  return memory;
}

}  // namespace quaver
