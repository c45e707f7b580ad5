/// A run file: the whole truth of a training run, read from TOML, changed by overrides, and written back
/// resolved.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quaver/model_config.h"
#include "quaver/products.h"
#include "quaver/recipe.h"
#include "text/corpus.h"

namespace quaver {

/// How Linears and activations are computed: fp8 (activations bf16), bf16, or fp32 throughout, for checking.
enum class Precision { fp8, bf16, fp32 };

/// Learning rate after the warm-up: a cosine from lr down to lr * min_lr_ratio; or lr held ("stable"), then
/// lowered over the last decay_fraction of all steps.
enum class ScheduleKind { cosine, wsd };

/// What a step does in which a loss, a gradient or a cast number is not finite: end the run, or leave its update out.
enum class NonFinite { stop, skip };

/// How optimizer state is stored: docs/numerics.md, "Optimizer state in fewer bits".
enum class StateFormat { f32, bf16, fp8 };

/// Section [optimizer].
struct OptimizerConfig {
  StateFormat moments = StateFormat::f32;  ///< of AdamW
  StateFormat masters = StateFormat::f32;  ///< of matrices; f32 or bf16

  friend bool operator==(const OptimizerConfig&, const OptimizerConfig&) = default;
};

/// Section [train].
struct TrainConfig {
  std::int64_t steps = 1000;  ///< optimizer steps
  std::uint64_t seed = 1;     ///< of initial weights and of the order of the data
  float lr = 3e-4f;           ///< the highest learning rate
  float min_lr_ratio = 0.1f;  ///< the last learning rate, as a share of lr
  ScheduleKind schedule = ScheduleKind::cosine;
  std::int64_t warmup_steps = 50;  ///< the learning rate rises linearly over these
  float decay_fraction = 0.2f;     ///< wsd: share of all steps in which the learning rate falls
  std::int64_t batch = 8;          ///< sequences per micro-batch
  std::int64_t accumulation = 1;   ///< micro-batches per optimizer step
  float beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f, weight_decay = 0.1f;  ///< AdamW
  float clip = 1;                     ///< largest norm of all gradients together; 0: no clipping
  std::int64_t eval_every = 100;      ///< steps between evaluations; 0: only at the end
  std::int64_t eval_batches = 20;     ///< validation batches per evaluation; 0: all
  std::int64_t log_every = 10;        ///< steps between log lines
  std::int64_t save_every = 0;        ///< steps between checkpoints; 0: only at the end
  std::int64_t keep_checkpoints = 2;  ///< so many of the newest are kept
  bool tensorboard = false;           ///< the metrics also go to TensorBoard event files
  NonFinite nonfinite = NonFinite::stop;
  std::int64_t max_skips = 10;  ///< so many skipped steps one after the other end the run
  /// "random", or a run folder whose weights are the initial ones (its FP8 state and optimizer are not taken)
  std::string init = "random";

  friend bool operator==(const TrainConfig&, const TrainConfig&) = default;
};

/// Fp8Override::recipe of what stays in BF16.
inline constexpr const char* kBf16 = "bf16";

/// One [[fp8.override]]: the recipe of some GEMMs of some modules.
struct Fp8Override {
  std::string match;                               ///< a pattern of module names (base/glob.h)
  std::array<bool, 3> gemms = {true, true, true};  ///< fprop, dgrad, wgrad
  std::string recipe = kBf16;                      ///< that, or a name of train/fp8_recipes.h
  std::string why = {};                            ///< shown by `inspect`; may be empty
  /// Which operands stay in BF16, by OperandRole; all: whole GEMMs. Some of them only under "bf16".
  std::array<bool, 3> operands = {true, true, true};
  friend bool operator==(const Fp8Override&, const Fp8Override&) = default;
};

/// Section [fp8]: consulted when precision = "fp8".
struct Fp8Config {
  std::string recipe = "delayed";            ///< a name of train/fp8_recipes.h
  Fp8Format format = Fp8Format::hybrid;      ///< of delayed and current
  Fp8Format mxfp8_format = Fp8Format::e4m3;  ///< of mxfp8
  int margin = 0;
  int amax_history_len = 1024;
  AmaxCompute amax_compute_algo = AmaxCompute::most_recent;
  bool smooth_swiglu = false;        ///< Linear::smooth_input of every down_proj
  bool lm_head = true;               ///< false keeps lm_head in BF16
  std::int64_t bf16_end_layers = 0;  ///< so many first and so many last blocks stay in BF16
  bool measured = false;  ///< fp8.auto: at start, GEMMs that FP8 does not make faster become overrides
  std::int64_t histogram_every = 0;    ///< steps between those that count exponents; 0: never
  std::vector<Fp8Override> overrides;  ///< later ones win

  /// The recipe these fields describe.
  Recipe make_recipe() const;
  friend bool operator==(const Fp8Config&, const Fp8Config&) = default;
};

/// Section [run].
struct RunFolder {
  std::string dir = "runs/default";  ///< where the resolved run file, metrics and checkpoints go

  friend bool operator==(const RunFolder&, const RunFolder&) = default;
};

/// Values of RunConfig::resume that are not paths.
inline constexpr const char* kResumeAuto = "auto";
inline constexpr const char* kResumeNone = "none";

struct RunConfig {
  Precision precision = Precision::fp8;
  std::string backend = "cpu";          ///< "reference", "cpu" or "cuda"
  int threads = 0;                      ///< 0: every processor
  Products products = Products::exact;  ///< of the backend "cpu"
  /// "auto": from the newest checkpoint in run.dir, if there is one; "none"; or a checkpoint (train/run_origin.h)
  std::string resume = kResumeAuto;
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  OptimizerConfig optimizer;
  Fp8Config fp8;
  RunFolder run;

  friend bool operator==(const RunConfig&, const RunConfig&) = default;
};

/// Names of the keys whose values differ.
std::vector<std::string> differing_keys(const RunConfig& a, const RunConfig& b);
/// Whether weights made under one value of this key mean something else under another: the keys of [model] but
/// for the context and initial values.
bool describes_weights(std::string_view key);

std::string_view name_of(Precision precision);
std::string_view name_of(ScheduleKind schedule);

/// Reads a run file and applies overrides ("section.key=value", the value in TOML; a bare word is a string).
/// Throws Error(data) when the file cannot be read, and Error(usage) naming file, line and column (or
/// "command line"), the key, what was expected and found, and the nearest valid name.
RunConfig load_run_config(const std::string& path, std::span<const std::string> overrides = {});

/// The same for the text of a run file; `source_name` stands for the file in messages.
RunConfig parse_run_config(std::string_view text, const std::string& source_name,
                           std::span<const std::string> overrides = {});

/// The configuration as a run file with every key, from which parse_run_config makes an equal one.
std::string to_toml(const RunConfig& config);

}  // namespace quaver
