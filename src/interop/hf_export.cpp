#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/check.h"
#include "base/files.h"
#include "interop/byte_tokenizer.h"
#include "interop/hf_folder.h"
#include "interop/hf_model.h"
#include "interop/hf_weights.h"
#include "text/token_data.h"
#include "text/tokenizer.h"
#include "train/run_folder.h"

namespace quaver {
namespace {

constexpr std::int64_t kNoToken = -1;

/// The token before documents, which also ends the one before it; none where it is not known or has no row in the model.
std::int64_t document_token(const RunConfig& config) {
  const auto tokenizer = load_tokenizer(config.data);
  const std::int64_t token = tokenizer ? tokenizer->document_token() : kNoToken;
  return token < config.model.vocab ? token : kNoToken;
}

std::string generation_config(std::int64_t document) {
  nlohmann::ordered_json out = {{"_from_model_config", true}};
  if (document != kNoToken) out["bos_token_id"] = out["eos_token_id"] = out["pad_token_id"] = document;
  return out.dump(2) + "\n";
}

std::int64_t count_elements(const FloatArrays& arrays) {
  std::int64_t count = 0;
  for (const auto& [name, array] : arrays) count += static_cast<std::int64_t>(array.values.size());
  return count;
}

/// The run's own tokenizer.json, where it has one; SentencePiece and tiktoken files have no form there.
bool copy_own_tokenizer(const std::string& source, const std::string& out) {
  const std::string file = tokenizer_file(source);
  if (std::filesystem::path(file).filename() != "tokenizer.json") return false;
  write_file_atomically(out + "/tokenizer.json", read_file(file));
  return true;
}

}  // namespace

HfExported export_hf_model(const HfExportOptions& options) {
  const LoadedRun run = load_run(options.run);
  const ModelConfig& config = run.config.model;
  const std::string& out = options.output;
  HfExported result{stock_architecture(config), 0, false};
  const std::string& tokenizer = run.config.data.tokenizer;
  const bool bytes = tokenizer == kBytesTokenizer && config.vocab >= kByteVocab;
  require(!std::filesystem::exists(out + "/config.json"),
          "--output: {} already holds a model. Hint: choose another folder, or delete that one", out);
  const FloatArrays weights = to_hf_weights(config, read_parameters(*run.model));
  result.parameters = count_elements(weights);
  const std::int64_t document = document_token(run.config);
  make_directories(out);
  write_hf_weights(out, weights, options.dtype, options.shard_bytes);
  write_file_atomically(out + "/generation_config.json", generation_config(document));
  if (bytes) {
    write_file_atomically(out + "/tokenizer.json", byte_tokenizer_json());
    write_file_atomically(out + "/tokenizer_config.json", byte_tokenizer_config_json(config.context));
  }
  result.has_tokenizer = bytes || (names_tokenizer_file(tokenizer) && copy_own_tokenizer(tokenizer, out));
  // Last: a folder with config.json is whole.
  write_file_atomically(out + "/config.json", to_hf_config(config, options.dtype, document));
  return result;
}

}  // namespace quaver
