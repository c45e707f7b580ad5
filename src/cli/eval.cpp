#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/format.h"
#include "quaver/backend.h"
#include "train/loss.h"
#include "train/run_folder.h"
#include "train/run_precision.h"

namespace quaver::cli {

int eval(const EvalArguments& arguments) {
  const LoadedRun run = load_run(arguments.run, arguments.overrides);
  const RunConfig& config = run.config;
  const TokenData data = load_token_data(config.data, config.model.context, config.model.vocab);
  const ValidationBatches batches(data.validation, data.rules, config.model.context, config.train.batch);
  Context context(run.model->backend(), activation_dtype(config.precision));
  const LossSum loss = evaluate(*run.model, context, run_recipe(config), batches, config.train.eval_batches);
  if (arguments.json) {
    const nlohmann::ordered_json json = {{"step", run.step},
                                         {"val_loss", loss.mean()},
                                         {"val_bpb", loss.bits_per_byte()},
                                         {"tokens", loss.tokens},
                                         {"bytes", loss.bytes}};
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("step             {}\n", run.step);
    fmt::print("validation loss  {} ({} tokens)\n", loss_text(loss), loss.tokens);
  }
  return 0;
}

}  // namespace quaver::cli
