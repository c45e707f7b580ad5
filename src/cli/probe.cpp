#include "train/probe.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "quaver/backend.h"
#include "train/run_folder.h"
#include "train/run_precision.h"

namespace quaver::cli {
namespace {

using nlohmann::ordered_json;

void print_text(const ModelProbe& probe, std::int64_t step) {
  fmt::print("step {}, {} tokens; first token: {:.2f}% of the attention, if it were even\n", step,
             probe.tokens, 100 * probe.uniform_share);
  for (std::size_t layer = 0; layer < probe.blocks.size(); ++layer) {
    const BlockProbe& block = probe.blocks[layer];
    fmt::print("blocks.{:<3}  largest residual {:<9.4g} first token {:>6.2f}%", layer, block.largest_residual,
               100 * block.mean_first_token_share());
    if (probe.has_gates)
      fmt::print("  gate mean {:.3f}, below {} {:.1f}%", block.gate_mean, kLowGate,
                 100 * block.gate_low_share);
    fmt::print("\n");
  }
  fmt::print("final_norm  largest residual {:.4g}\n", probe.largest_output);
}

ordered_json to_json(const ModelProbe& probe, std::int64_t step) {
  ordered_json json = {{"step", step},
                       {"tokens", probe.tokens},
                       {"largest_residual", probe.largest_residual()},
                       {"largest_output", probe.largest_output},
                       {"uniform_share", probe.uniform_share},
                       {"blocks", ordered_json::array()}};
  for (const BlockProbe& block : probe.blocks) {
    ordered_json entry = {{"largest_residual", block.largest_residual},
                          {"first_token_share", block.mean_first_token_share()},
                          {"first_token_share_by_head", block.first_token_share}};
    if (probe.has_gates) {
      entry["gate_mean"] = block.gate_mean;
      entry["gate_low_share"] = block.gate_low_share;
    }
    json["blocks"].push_back(std::move(entry));
  }
  return json;
}

}  // namespace

int probe(const ProbeArguments& arguments) {
  const LoadedRun run = load_run(arguments.run, arguments.overrides);
  const RunConfig& config = run.config;
  const TokenData data = load_token_data(config.data, config.model.context, config.model.vocab);
  const ValidationBatches batches(data.validation, data.rules, config.model.context, config.train.batch);
  Context context(run.model->backend(), activation_dtype(config.precision));
  const ModelProbe found =
      quaver::probe(*run.model, context, run_recipe(config), batches, config.train.eval_batches);
  if (arguments.json) {
    fmt::print("{}\n", to_json(found, run.step).dump());
  } else {
    print_text(found, run.step);
  }
  return 0;
}

}  // namespace quaver::cli
