#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/check.h"
#include "base/files.h"
#include "interop/byte_tokenizer.h"
#include "interop/hf_folder.h"
#include "interop/hf_model.h"
#include "interop/hf_weights.h"
#include "train/run_folder.h"

namespace quaver {
namespace {

std::string generation_config(bool has_tokenizer) {
  nlohmann::ordered_json out = {{"_from_model_config", true}};
  if (has_tokenizer) out["bos_token_id"] = out["eos_token_id"] = out["pad_token_id"] = kDocumentToken;
  return out.dump(2) + "\n";
}

std::int64_t count_elements(const FloatArrays& arrays) {
  std::int64_t count = 0;
  for (const auto& [name, array] : arrays) count += static_cast<std::int64_t>(array.values.size());
  return count;
}

}  // namespace

HfExported export_hf_model(const HfExportOptions& options) {
  const LoadedRun run = load_run(options.run);
  const ModelConfig& config = run.config.model;
  const std::string& out = options.output;
  HfExported result{stock_architecture(config), 0, config.vocab >= kByteVocab};
  require(!std::filesystem::exists(out + "/config.json"),
          "--output: {} already holds a model. Hint: choose another folder, or delete that one", out);
  const FloatArrays weights = to_hf_weights(config, read_parameters(*run.model));
  result.parameters = count_elements(weights);
  make_directories(out);
  write_hf_weights(out, weights, options.dtype, options.shard_bytes);
  write_file_atomically(out + "/generation_config.json", generation_config(result.has_tokenizer));
  if (result.has_tokenizer) {
    write_file_atomically(out + "/tokenizer.json", byte_tokenizer_json());
    write_file_atomically(out + "/tokenizer_config.json", byte_tokenizer_config_json(config.context));
  }
  // Last: a folder with config.json is whole.
  const std::int64_t document = result.has_tokenizer ? kDocumentToken : -1;
  write_file_atomically(out + "/config.json", to_hf_config(config, options.dtype, document));
  return result;
}

}  // namespace quaver
