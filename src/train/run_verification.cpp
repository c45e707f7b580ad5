#include "train/run_verification.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/check.h"
#include "base/files.h"
#include "formats/checkpoint_store.h"
#include "quaver/backend.h"
#include "quaver/fp8_format.h"
#include "text/token_data.h"
#include "train/checkpoint.h"
#include "train/model_file.h"
#include "train/run_folder.h"

namespace quaver {
namespace {

/// `array` is f32, bf16 or FP8: what weights and moments are stored as.
float element(const NamedArray& array, std::size_t index) {
  const std::byte* at = array.bytes.data() + index * size_of(array.dtype);
  if (is_fp8(array.dtype)) return fp8_decode(array.dtype, std::to_integer<std::uint8_t>(*at));
  if (array.dtype == DType::bf16) {
    bf16 value{};
    std::memcpy(&value, at, sizeof value);
    return to_float(value);
  }
  float value = 0;
  std::memcpy(&value, at, sizeof value);
  return value;
}

void require_finite(const std::string& path) {
  const Safetensors file = read_part(path);
  for (const NamedArray& array : file.arrays) {
    for (std::size_t i = 0; i < array.bytes.size() / size_of(array.dtype); ++i) {
      const float value = element(array, i);
      if (!std::isfinite(value)) fail(ErrorKind::data, "{}: {}[{}] is {}", path, array.name, i, value);
    }
  }
}

void require_step(std::int64_t found, std::int64_t expected, const std::string& path) {
  if (found != expected) fail(ErrorKind::data, "{}: of step {}, expected {}", path, found, expected);
}

const std::vector<std::string> kOnHost = {"backend=cpu"};

/// Reads it as evaluation does.
std::string verify_model(const std::string& run) {
  const LoadedRun loaded = load_run(run, kOnHost);
  require_finite(model_path(run));
  return fmt::format("step {}", loaded.step);
}

/// Reads it as training does that goes on from it.
std::string verify_training_state(FileSystem& files, const std::string& folder) {
  const CheckpointManifest manifest = verify_checkpoint(files, folder);
  const RunConfig config = load_run_config(config_path(folder), kOnHost);
  Trainer trainer(make_backend(config.backend, config.threads, config.products), config);
  const RunProgress progress = restore_checkpoint(folder, trainer);
  require_step(progress.step, manifest.step, folder);
  require_step(trainer.steps() + progress.skipped, manifest.step, optimizer_path(folder));
  for (const std::string& path : {model_path(folder), fp8_state_path(folder)})
    require_step(step_of(read_part(path), path), manifest.step, path);
  for (const std::string& path : {model_path(folder), optimizer_path(folder)}) require_finite(path);
  std::uint64_t bytes = 0;
  for (const ManifestEntry& entry : manifest.files) bytes += entry.bytes;
  return fmt::format("step {}, {} files, {} bytes", manifest.step, manifest.files.size(), bytes);
}

/// Steps of metrics.jsonl; each line follows the one before.
std::string verify_metrics(const std::string& path) {
  const std::string text = read_file(path);
  std::istringstream lines(text);
  std::int64_t number = 0, last_step = 0;
  const bool is_cut = !text.empty() && text.back() != '\n';
  for (std::string line; std::getline(lines, line);) {
    ++number;
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_discarded() && is_cut && lines.eof())
      return fmt::format("up to step {}; the last line is cut off", last_step);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer())
      fail(ErrorKind::data, "{}:{}: not an object with \"step\"", path, number);
    const auto step = json["step"].get<std::int64_t>();
    if (step <= last_step)
      fail(ErrorKind::data, "{}:{}: step {} after step {}", path, number, step, last_step);
    last_step = step;
  }
  return fmt::format("{} steps, up to {}", number, last_step);
}

class Verifier {
 public:
  explicit Verifier(FileSystem& files) : files_(files) {}

  void checkpoint(const std::string& folder) {
    part(folder, [&] { return verify_training_state(files_, folder); });
  }

  void run(const std::string& folder) {
    part(config_path(folder), [&] {
      load_run_config(config_path(folder));
      return "a configuration";
    });
    checkpoints(checkpoints_path(folder));
    if (files_.exists(model_path(folder))) part(model_path(folder), [&] { return verify_model(folder); });
    if (files_.exists(metrics_path(folder)))
      part(metrics_path(folder), [&] { return verify_metrics(metrics_path(folder)); });
    if (files_.exists(folder + "/tokenizer.json") || files_.exists(folder + "/tokenizer.model"))
      part(folder + "/tokenizer", [&] { return tokenizer(folder); });
  }

  RunVerification result;

 private:
  void part(const std::string& path, const std::function<std::string()>& verify) {
    try {
      result.parts.push_back({path, verify(), false});
    } catch (const Error& error) {
      result.parts.push_back({path, error.what(), true});
    }
  }

  void checkpoints(const std::string& folder) {
    const CheckpointStore store(files_, folder);
    for (const std::int64_t step : store.steps()) checkpoint(store.path_of(step));
    if (!files_.exists(folder)) return;
    for (const DirectoryEntry& entry : files_.list(folder)) {
      if (entry.name.ends_with(".damaged"))
        result.parts.push_back(
            {folder + "/" + entry.name, "set aside by a run that went on before it", false});
      if (entry.name.ends_with(".tmp") || entry.name.ends_with(".trash"))
        result.parts.push_back({folder + "/" + entry.name, "unfinished; the next start removes it", false});
    }
  }

  static std::string tokenizer(const std::string& folder) {
    DataConfig data;
    data.tokenizer = folder;
    return fmt::format("{} tokens", load_tokenizer(data)->vocab());
  }

  FileSystem& files_;
};

}  // namespace

std::int64_t RunVerification::damaged() const {
  return std::count_if(parts.begin(), parts.end(), [](const VerifiedPart& part) { return part.damaged; });
}

RunVerification verify_run(FileSystem& files, const std::string& folder) {
  Verifier verifier(files);
  if (files.exists(folder + "/" + kManifestName)) {
    verifier.checkpoint(folder);
  } else if (holds_run(folder)) {
    verifier.run(folder);
  } else {
    fail(ErrorKind::data, "{}: not a run folder: it holds no config.toml", folder);
  }
  return std::move(verifier.result);
}

}  // namespace quaver
