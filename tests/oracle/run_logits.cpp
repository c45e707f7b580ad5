/// Runs with random weights, and what a run computes, for tests/oracle/hf_export_test.py.
///
/// usage: oracle_run_logits make CONFIG.toml [section.key=value ...]    makes the run folder of run.dir
///        oracle_run_logits logits RUN OUT.safetensors TOKEN...         logits [tokens, vocab] in FP32
#include <fmt/format.h>

#include <exception>
#include <numeric>

#include "random_model.h"
#include "train/run_folder.h"

namespace quaver {
namespace {

void make(const std::string& config_file, std::span<const std::string> overrides) {
  const RunConfig config = load_run_config(config_file, overrides);
  LanguageModel model(make_backend(config.backend, config.threads), config.model, config.train.seed);
  disturb(model);
  create_run_folder(config);
  save_model(config, model, 0);
}

void write_logits(const std::string& run_folder, const std::string& out, std::span<const std::string> words) {
  const LoadedRun run = load_run(run_folder, std::vector<std::string>{"precision=fp32"});
  Backend& backend = run.model->backend();
  std::vector<std::int32_t> tokens, positions(words.size());
  for (const std::string& word : words) tokens.push_back(std::stoi(word));
  std::iota(positions.begin(), positions.end(), 0);
  const auto length = static_cast<std::int64_t>(words.size());
  const TokenBatch batch{
      1, length, upload(backend, tokens, {length}), upload(backend, positions, {length}), {}};
  Context context(backend, DType::f32);
  const NoGradients evaluation(context);
  const Tensor logits = run.model->forward(context, batch, nullptr);
  write_safetensors(out, std::vector{to_array(backend, "logits", logits)});
}

}  // namespace
}  // namespace quaver

int main(int argc, char** argv) try {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const std::span<const std::string> all(arguments);
  if (all.size() >= 2 && all[0] == "make") {
    quaver::make(all[1], all.subspan(2));
  } else if (all.size() >= 4 && all[0] == "logits") {
    quaver::write_logits(all[1], all[2], all.subspan(3));
  } else {
    throw std::runtime_error("unknown arguments");
  }
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "oracle_run_logits: {}\n", error.what());
  return 1;
}
