#include <filesystem>
#include <utility>

#include "base/check.h"
#include "base/files.h"
#include "interop/hf_folder.h"
#include "interop/hf_model.h"
#include "interop/hf_weights.h"
#include "quaver/backend.h"
#include "text/token_data.h"
#include "text/tokenizer.h"
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

/// What keeps Quaver from reading the folder's tokenizer; empty: nothing.
std::string tokenizer_problem(const std::string& folder) try {
  load_tokenizer(folder);
  return "";
} catch (const Error& error) {
  return error.what();
}

RunConfig run_config(const HfImportOptions& options, const ModelConfig& model) {
  RunConfig imported;
  imported.precision = Precision::bf16;
  imported.model = model;
  imported.data.path = "data/text";
  imported.data.tokenizer = tokenizer_problem(options.folder).empty()
                                ? std::filesystem::absolute(options.folder).lexically_normal().string()
                                : kUnknownTokenizer;
  if (!options.run.empty()) imported.run.dir = options.run;
  const std::string source = options.folder + "/config.json";
  const RunConfig config = parse_run_config(to_toml(imported), source, options.overrides);
  require(config.run.dir == imported.run.dir, "run.dir: it is --output");
  for (const std::string& key : differing_keys(imported, config)) {
    // The weights are laid out as these overrides say.
    const bool lays_out = key == "model.qkv" || key == "model.gate_up";
    require(!describes_weights(key) || lays_out,
            "{}: {} says what the weights are made for. Hint: leave the override out", key, source);
  }
  return config;
}

struct Loaded {
  HfArchitecture architecture;
  LoadedRun run;
};

Loaded load(const HfImportOptions& options) {
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
  Loaded loaded{model.architecture, {run_config(options, model.config), nullptr, 0}};
  const RunConfig& config = loaded.run.config;
  loaded.run.model = std::make_unique<LanguageModel>(
      make_backend(config.backend, config.threads, config.products), config.model, config.train.seed);
  naming(options.folder, [&] { write_parameters(*loaded.run.model, std::move(weights)); });
  return loaded;
}

}  // namespace

LoadedRun load_hf_model(const HfImportOptions& options) {
  return load(options).run;
}

HfImported import_hf_model(const HfImportOptions& options) {
  Loaded loaded = load(options);
  RunConfig& config = loaded.run.config;
  create_run_folder(config);
  HfImported result{loaded.architecture, parameter_count(config.model), false, ""};
  result.has_tokenizer = names_tokenizer_file(config.data.tokenizer);
  if (result.has_tokenizer) {
    // From now on the run's own copy, so that the source may go.
    config.data.tokenizer = std::filesystem::absolute(options.run).lexically_normal();
    write_file_atomically(config_path(options.run), to_toml(config));
  } else if (std::filesystem::exists(options.folder + "/tokenizer.json")) {
    result.tokenizer_problem = tokenizer_problem(options.folder);
  }
  save_model(config, *loaded.run.model, 0);
  return result;
}

}  // namespace quaver
