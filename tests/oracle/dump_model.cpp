/// Writes what one model computes to a safetensors file, for tests/oracle/model_gradients_test.py.
///
/// usage: oracle_dump_model CONFIG.toml OUT.safetensors [section.key=value ...]
///
/// The configuration's model runs forward and backward in FP32 on the configured backend, on random tokens in
/// two documents a sequence. Every parameter is disturbed first, so that no gain is 1 and no bias is 0.
#include <fmt/format.h>

#include <cstring>
#include <exception>

#include "base/random.h"
#include "quaver/backend.h"
#include "quaver/language_model.h"
#include "random_model.h"
#include "train/run_config.h"

namespace quaver {
namespace {

constexpr std::int64_t kBatch = 2;

class Collect : public ModuleVisitor {
 public:
  Collect(Backend& backend, std::vector<NamedArray>& arrays) : backend_(backend), arrays_(arrays) {}
  void parameter(const std::string& name, Parameter& parameter) override {
    arrays_.push_back(to_array(backend_, "value:" + name, parameter.value));
    arrays_.push_back(to_array(backend_, "gradient:" + name, parameter.accumulated_gradient(backend_)));
  }

 private:
  Backend& backend_;
  std::vector<NamedArray>& arrays_;
};

void dump(const std::string& config_path, const std::string& out_path,
          std::span<const std::string> overrides) {
  const RunConfig config = load_run_config(config_path, overrides);
  const auto backend = make_backend(config.backend, config.threads);
  LanguageModel model(backend, config.model, config.train.seed);
  disturb(model);

  const std::int64_t length = config.model.context, rows = kBatch * length;
  const Random random(11, 0);
  std::vector<std::int32_t> tokens(rows), targets(rows), positions(rows), first_key(rows);
  for (std::int64_t row = 0; row < rows; ++row) {
    tokens[row] = static_cast<std::int32_t>(random.below(2 * row, config.model.vocab));
    targets[row] = static_cast<std::int32_t>(random.below(2 * row + 1, config.model.vocab));
    positions[row] = static_cast<std::int32_t>(row % length);
    const std::int64_t second_document = length / 3 + row / length;
    first_key[row] = static_cast<std::int32_t>(positions[row] >= second_document ? second_document : 0);
  }
  const Tensor targets_tensor = upload(*backend, targets, {rows});
  TokenBatch batch{kBatch, length, upload(*backend, tokens, {rows}), upload(*backend, positions, {rows}),
                   upload(*backend, first_key, {rows})};

  Context context(*backend, DType::f32);
  LanguageModel::Saved saved;
  const Tensor logits = model.forward(context, batch, &saved);
  const Tensor losses = backend->allocate(DType::f32, {rows});
  const Output dlogits = model.make_logits_gradient(context, saved);
  backend->cross_entropy(logits, targets_tensor, 1.0f / static_cast<float>(rows), losses, dlogits);
  {
    const BackwardPass pass(context);
    model.backward(context, saved, dlogits);
  }

  std::vector<NamedArray> arrays{to_array(*backend, "tokens", batch.tokens),
                                 to_array(*backend, "targets", targets_tensor),
                                 to_array(*backend, "positions", batch.positions),
                                 to_array(*backend, "first_key", batch.first_key),
                                 to_array(*backend, "logits", logits),
                                 to_array(*backend, "losses", losses)};
  Collect collect(*backend, arrays);
  model.visit("", collect);
  write_safetensors(out_path, arrays, {{"config", to_toml(config)}});
}

}  // namespace
}  // namespace quaver

int main(int argc, char** argv) try {
  if (argc < 3)
    throw std::runtime_error("usage: oracle_dump_model CONFIG.toml OUT.safetensors [section.key=value ...]");
  const std::vector<std::string> overrides(argv + 3, argv + argc);
  quaver::dump(argv[1], argv[2], overrides);
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "oracle_dump_model: {}\n", error.what());
  return 1;
}
