#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "cli/peak.h"
#include "cli/progress.h"

namespace quaver::cli {
namespace {

/// "29 of 29 Linear modules, all three GEMMs"
std::string describe(const Fp8Coverage& fp8) {
  if (fp8.in_fp8 == 0) return fmt::format("0 of {} Linear modules", fp8.linears);
  return fmt::format(
      "{} of {} Linear modules, {}", fp8.in_fp8, fp8.linears,
      fp8.full == fp8.in_fp8 ? "all three GEMMs" : fmt::format("{} of them in all three GEMMs", fp8.full));
}

void print_text(const RunConfig& config, const TrainingResult& result) {
  fmt::print("train loss       {} (mean of the last {} steps)\n", loss_text(result.train),
             std::min<std::int64_t>(kFinalSteps, result.steps - result.skipped));
  if (result.validation) fmt::print("validation loss  {}\n", loss_text(*result.validation));
  if (result.skipped > 0)
    fmt::print("skipped          {} of {} steps, in which numbers were not finite\n", result.skipped,
               result.steps);
  fmt::print("speed            {} tokens/s\n", with_prefix(result.tokens_per_second));
  fmt::print("FP8              {}\n", describe(result.fp8));
  fmt::print("peak memory      {} in tensors, {} process\n", bytes(result.arena.peak),
             bytes(result.process_peak));
  fmt::print("run folder       {}\n", config.run.dir);
  if (result.stopped)
    fmt::print("stopped          by a signal after step {}; saved: the same command goes on\n", result.steps);
}

void print_json(const RunConfig& config, const TrainingResult& result) {
  nlohmann::ordered_json json = {{"steps", result.steps},
                                 {"skipped", result.skipped},
                                 {"stopped", result.stopped},
                                 {"train_loss", result.train.mean()},
                                 {"train_bpb", result.train.bits_per_byte()},
                                 {"tokens_per_s", result.tokens_per_second},
                                 {"linear_modules", result.fp8.linears},
                                 {"fp8_modules", result.fp8.in_fp8},
                                 {"fp8_modules_all_gemms", result.fp8.full},
                                 {"peak_tensor_bytes", result.arena.peak},
                                 {"peak_process_bytes", result.process_peak},
                                 {"run", config.run.dir}};
  if (result.validation) {
    json["val_loss"] = result.validation->mean();
    json["val_bpb"] = result.validation->bits_per_byte();
  }
  fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace

int train(const TrainArguments& arguments) {
  RunConfig config = load_run_config(arguments.config, arguments.overrides);
  require(!arguments.strict_fp8 || config.precision == Precision::fp8,
          "--strict-fp8: precision is \"{}\", in which nothing runs in FP8", name_of(config.precision));
  // So that the run folder can be evaluated from any working directory.
  config.data.path = std::filesystem::absolute(config.data.path).lexically_normal();
  if (config.resume != kResumeAuto && config.resume != kResumeNone)
    config.resume = std::filesystem::absolute(config.resume).lexically_normal();
  if (names_tokenizer_file(config.data.tokenizer))
    config.data.tokenizer = std::filesystem::absolute(config.data.tokenizer).lexically_normal();
  Progress progress(config, measure_peak(config, 0.2), arguments.strict_fp8);
  catch_signals();
  const TrainingResult result = run_training(config, progress);
  arguments.json ? print_json(config, result) : print_text(config, result);
  return result.stopped ? kStopped : 0;
}

}  // namespace quaver::cli
