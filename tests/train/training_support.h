/// A small model, and text for it that can be learnt.
#pragma once

#include <fmt/format.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "base/files.h"
#include "quaver/backend.h"
#include "quaver/language_model.h"
#include "support/temporary_folder.h"
#include "text/batches.h"
#include "train/loss.h"
#include "train/run_config.h"
#include "train/run_folder.h"
#include "train/run_precision.h"

namespace quaver {

/// Documents that repeat a few words: enough of them for both splits.
inline std::string write_text(const TemporaryFolder& folder) {
  for (int document = 0; document < 24; ++document) {
    std::string text;
    for (int line = 0; line < 20; ++line) {
      text += fmt::format("line {} of document {}: the quick brown fox jumps over the lazy dog\n", line,
                          document);
    }
    folder.write(fmt::format("text/{:02}.txt", document), text);
  }
  return folder.path("text");
}

/// The shape of configs/micro.toml.
inline RunConfig micro_config(const TemporaryFolder& folder) {
  RunConfig config;
  config.model.width = 32;
  config.model.layers = 2;
  config.model.heads = 4;
  config.model.kv_heads = 2;
  config.model.head_dim = 8;
  config.model.ffn_width = 64;
  config.model.context = 64;
  config.data.path = folder.path("text");
  config.data.val_fraction = 0.2;
  config.train.steps = 6;
  config.train.lr = 3e-3f;
  config.train.warmup_steps = 2;
  config.train.batch = 2;
  config.train.eval_every = 0;
  config.train.eval_batches = 3;
  config.fp8.amax_history_len = 4;
  config.run.dir = folder.path("run");
  return config;
}

inline BatchSource training_batches(const RunConfig& config) {
  const TokenData data = load_token_data(config.data, config.model.context, config.model.vocab);
  return BatchSource(data.train, data.rules, config.model.context, config.train.batch, config.train.seed);
}

inline ValidationBatches validation_batches(const RunConfig& config) {
  const TokenData data = load_token_data(config.data, config.model.context, config.model.vocab);
  return ValidationBatches(data.validation, data.rules, config.model.context, config.train.batch);
}

/// The lines of a run's metrics.jsonl.
inline std::vector<nlohmann::json> read_metrics(const RunConfig& config) {
  std::vector<nlohmann::json> lines;
  std::istringstream text(read_file(metrics_path(config.run.dir)));
  for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

/// The validation loss of what a run saved last.
inline LossSum evaluate_saved(const RunConfig& config) {
  const LoadedRun run = load_run(config.run.dir);
  Context context(run.model->backend());
  return evaluate(*run.model, context, run_recipe(run.config), validation_batches(config),
                  config.train.eval_batches);
}

struct NamedValues {
  std::string name;
  std::vector<float> value, gradient;
  friend bool operator==(const NamedValues&, const NamedValues&) = default;
};

/// Values and gradients of all parameters. A gradient that nothing was added to is empty.
inline std::vector<NamedValues> parameters_of(Backend& backend, Module& module) {
  struct Visitor : ModuleVisitor {
    explicit Visitor(Backend& b) : backend(b) {}
    void parameter(const std::string& name, Parameter& parameter) override {
      all.push_back({name, download(backend, parameter.value), {}});
      if (parameter.has_gradient) all.back().gradient = download(backend, parameter.gradient);
    }
    Backend& backend;
    std::vector<NamedValues> all;
  } visitor(backend);
  module.visit("", visitor);
  return visitor.all;
}

/// Makes one element of the last parameter's gradient NaN.
inline void inject_nan(LanguageModel& model) {
  struct Visitor : ModuleVisitor {
    void parameter(const std::string& /*name*/, Parameter& parameter) override { last = &parameter; }
    Parameter* last = nullptr;
  } visitor;
  model.visit("", visitor);
  model.backend().fill(visitor.last->gradient.slice(0, 1), std::numeric_limits<double>::quiet_NaN());
}

}  // namespace quaver
