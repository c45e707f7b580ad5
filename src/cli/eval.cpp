#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/format.h"
#include "generate/multiple_choice.h"
#include "interop/open_model.h"
#include "quaver/backend.h"
#include "text/token_data.h"
#include "train/loss.h"
#include "train/run_precision.h"

namespace quaver::cli {

namespace {

int eval_choices(const EvalArguments& arguments, const LoadedRun& run) {
  const RunConfig& config = run.config;
  const auto tokenizer = load_tokenizer(config.data);
  std::vector<ChoiceQuestion> questions =
      read_choice_file(arguments.choices, tokenizer.get(), config.model.vocab);
  if (arguments.limit > 0 && static_cast<std::size_t>(arguments.limit) < questions.size())
    questions.resize(static_cast<std::size_t>(arguments.limit));
  Context context(run.model->backend(), activation_dtype(config.precision));
  const ChoiceAccuracy accuracy = evaluate_choices(*run.model, context, run_recipe(config), questions);
  if (arguments.json) {
    const nlohmann::ordered_json json = {{"step", run.step},
                                         {"questions", accuracy.questions},
                                         {"acc", accuracy.acc()},
                                         {"acc_norm", accuracy.acc_norm()}};
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("step      {}\n", run.step);
    fmt::print("acc       {:.4f} ({} of {}: the likeliest)\n", accuracy.acc(), accuracy.right,
               accuracy.questions);
    fmt::print("acc_norm  {:.4f} ({} of {}: the likeliest per token)\n", accuracy.acc_norm(),
               accuracy.right_norm, accuracy.questions);
  }
  return 0;
}

}  // namespace

int eval(const EvalArguments& arguments) {
  const LoadedRun run = open_model(arguments.run, arguments.overrides);
  if (!arguments.choices.empty()) return eval_choices(arguments, run);
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
