/// Whole models out to and in from Hugging Face folders.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "interop/hf_config.h"
#include "train/run_folder.h"

namespace quaver {

struct HfExportOptions {
  std::string run;     ///< a run folder
  std::string output;  ///< a folder to make; it must not hold a model yet
  DType dtype = DType::f32;
  std::uint64_t shard_bytes = std::uint64_t{5} << 30;
};

struct HfExported {
  HfArchitecture architecture = HfArchitecture::llama;
  std::int64_t parameters = 0;  ///< elements written
  bool has_tokenizer = false;   ///< false: the run's tokens have no tokenizer.json
};

/// Writes config.json, generation_config.json, the weights and the tokenizer's files. Throws Error(usage)
/// naming the key for a model that no stock architecture computes.
HfExported export_hf_model(const HfExportOptions& options);

struct HfImportOptions {
  std::string folder;                  ///< of config.json and the weights
  std::string run;                     ///< the run folder to make; empty for `load_hf_model`
  std::vector<std::string> overrides;  ///< of the run file; of [model], only what is no part of the weights
  GateLayout gate_layout = GateLayout::per_head;
  bool headwise_gate = false;             ///< a stock gate whose rows are equal in every head: one row a head
  std::vector<std::string> ignored_keys;  ///< of config.json
};

struct HfImported {
  HfArchitecture architecture = HfArchitecture::llama;
  std::int64_t parameters = 0;
  bool has_tokenizer = false;     ///< the folder's tokenizer is copied and is the run's
  std::string tokenizer_problem;  ///< why a tokenizer that is there cannot be read
};

/// The model at step 0, in BF16 unless an override says otherwise. config.data.tokenizer names the folder if Quaver reads the
/// tokenizer in it, and is "none" if not.
LoadedRun load_hf_model(const HfImportOptions& options);

/// Makes a run folder of `load_hf_model`'s model. FP8 scales are not known before the first training step.
HfImported import_hf_model(const HfImportOptions& options);

}  // namespace quaver
