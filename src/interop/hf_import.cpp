#include <filesystem>
#include <utility>

#include "base/check.h"
#include "base/files.h"
#include "interop/hf_folder.h"
#include "interop/hf_model.h"
#include "interop/hf_weights.h"
#include "quaver/backend.h"
#include "train/run_folder.h"

namespace quaver {
namespace {

/// Adds the folder to what `action` finds wrong.
template <typename Action>
auto naming(const std::string& folder, Action action) try {
  return action();
} catch (const Error& error) {
  fail(error.kind(), "{}: {}", folder, error.what());
}

RunConfig run_config(const HfImportOptions& options, const ModelConfig& model) {
  RunConfig imported;
  imported.precision = Precision::bf16;
  imported.model = model;
  imported.data.path = "data/text";
  imported.run.dir = options.run;
  const std::string source = options.folder + "/config.json";
  const RunConfig config = parse_run_config(to_toml(imported), source, options.overrides);
  require(config.run.dir == options.run, "run.dir: it is --output");
  for (const std::string& key : differing_keys(imported, config)) {
    // The weights are laid out as the override of model.qkv says.
    require(!describes_weights(key) || key == "model.qkv",
            "{}: {} says what the weights are made for. Hint: leave the override out", key, source);
  }
  return config;
}

/// Sample and training speak bytes; the file lies ready for whoever reads the text of such a model.
bool copy_tokenizer(const std::string& from, const std::string& to) {
  const std::string path = from + "/tokenizer.json";
  if (!std::filesystem::exists(path)) return false;
  write_file_atomically(to + "/tokenizer.json", read_file(path));
  return true;
}

}  // namespace

HfImported import_hf_model(const HfImportOptions& options) {
  const std::string source = options.folder + "/config.json";
  HfModel model = parse_hf_config(read_file(source), source, options.gate_layout, options.ignored_keys);
  FloatArrays weights =
      naming(options.folder, [&] { return from_hf_weights(model, read_hf_weights(options.folder)); });
  if (options.headwise_gate) {
    require(model.config.gate == GateKind::elementwise,
            "--gate headwise: this model has no elementwise gate");
    model.config.gate = GateKind::headwise;
    naming(options.folder, [&] { make_gates_headwise(model.config, weights); });
  }
  const RunConfig config = run_config(options, model.config);
  LanguageModel built(make_backend(config.backend, config.threads), config.model, config.train.seed);
  naming(options.folder, [&] { write_parameters(built, std::move(weights)); });
  create_run_folder(config);
  const bool has_tokenizer = copy_tokenizer(options.folder, options.run);
  save_model(config, built, 0);
  return {model.architecture, parameter_count(config.model), has_tokenizer};
}

}  // namespace quaver
