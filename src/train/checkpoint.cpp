#include "train/checkpoint.h"

#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/check.h"
#include "base/files.h"
#include "quaver/backend.h"
#include "train/fp8_state.h"
#include "train/model_file.h"
#include "train/run_folder.h"

namespace quaver {
namespace {

using nlohmann::ordered_json;

constexpr const char* kProgressFile = "progress.json";

std::string to_json(const RunProgress& progress) {
  ordered_json losses = ordered_json::array();
  for (const LossSum& loss : progress.last_losses) losses.push_back({loss.nats, loss.tokens, loss.bytes});
  return ordered_json{{"step", progress.step},
                      {"skipped", progress.skipped},
                      {"skipped_in_a_row", progress.skipped_in_a_row},
                      {"tokens", progress.tokens},
                      {"seconds", progress.seconds},
                      {"last_losses", std::move(losses)},
                      {"data_fingerprint", progress.data_fingerprint}}
             .dump(1) +
         "\n";
}

RunProgress progress_from(const std::string& path) try {
  const ordered_json json = ordered_json::parse(read_file(path));
  RunProgress progress;
  progress.step = json.at("step").get<std::int64_t>();
  progress.skipped = json.value("skipped", std::int64_t{0});  // not in files of versions that skipped nothing
  progress.skipped_in_a_row = json.value("skipped_in_a_row", std::int64_t{0});
  progress.tokens = json.at("tokens").get<std::int64_t>();
  progress.seconds = json.at("seconds").get<double>();
  for (const ordered_json& loss : json.at("last_losses")) {
    progress.last_losses.push_back(
        {loss.at(0).get<double>(), loss.at(1).get<std::int64_t>(), loss.at(2).get<std::int64_t>()});
  }
  progress.data_fingerprint = json.at("data_fingerprint").get<std::uint32_t>();
  return progress;
} catch (const nlohmann::json::exception& error) {
  fail(ErrorKind::data, "{}: damaged: {}", path, error.what());
}

/// Of a parameter: the moments, and where there are scales, those.
std::vector<std::pair<std::string, Tensor>> moment_arrays(const AdamW::Entry& entry) {
  std::vector<std::pair<std::string, Tensor>> arrays{{"m." + entry.name, entry.m},
                                                     {"v." + entry.name, entry.v}};
  if (entry.m_scales) {
    arrays.emplace_back("m_scales." + entry.name, entry.m_scales);
    arrays.emplace_back("v_scales." + entry.name, entry.v_scales);
  }
  return arrays;
}

void restore_moments(Trainer& trainer, const Safetensors& file, const std::string& path) {
  std::vector<std::pair<std::string, Tensor>> expected;
  for (const AdamW::Entry& entry : trainer.optimizer().entries()) {
    for (auto& array : moment_arrays(entry)) expected.push_back(std::move(array));
  }
  if (file.arrays.size() != expected.size())
    fail(ErrorKind::data, "{}: holds {} arrays, expected {}", path, file.arrays.size(), expected.size());
  for (const auto& [name, tensor] : expected) load_array(trainer.backend(), file, path, name, tensor);
}

}  // namespace

void RunProgress::add(const StepResult& result, double step_seconds) {
  ++step;
  tokens += result.loss.tokens;
  seconds += step_seconds;
  if (!result.skipped.empty()) {
    ++skipped;
    ++skipped_in_a_row;
    return;
  }
  skipped_in_a_row = 0;
  if (last_losses.size() == kFinalSteps) last_losses.erase(last_losses.begin());
  last_losses.push_back(result.loss);
}

Snapshot::Snapshot(Trainer& trainer, const RunProgress& progress) : step_(progress.step) {
  const auto metadata = part_metadata(step_);
  files_.push_back({"config.toml", to_toml(trainer.config()), {}});
  files_.push_back({kProgressFile, to_json(progress), {}});
  add("model.safetensors", capture_parameters(trainer.model()), metadata);
  Safetensors fp8 = to_safetensors(capture_fp8_state(trainer.backend(), trainer.model()));
  fp8.metadata.insert(metadata.begin(), metadata.end());
  add("fp8_state.safetensors", std::move(fp8.arrays), fp8.metadata);
  std::vector<NamedArray> moments;
  for (const AdamW::Entry& entry : trainer.optimizer().entries()) {
    for (const auto& [name, tensor] : moment_arrays(entry))
      moments.push_back(to_array(trainer.backend(), name, tensor));
  }
  add("optimizer.safetensors", std::move(moments), metadata);
}

void Snapshot::add(std::string name, std::vector<NamedArray> arrays,
                   const std::map<std::string, std::string>& metadata) {
  std::string head = safetensors_preamble(arrays, metadata);
  files_.push_back({std::move(name), std::move(head), std::move(arrays)});
}

std::uint64_t Snapshot::bytes() const {
  std::uint64_t sum = 0;
  for (const CheckpointFile& file : files()) {
    for (const auto chunk : file.chunks) sum += chunk.size();
  }
  return sum;
}

std::vector<CheckpointFile> Snapshot::files() const {
  std::vector<CheckpointFile> views;
  for (const File& file : files_) {
    CheckpointFile view{file.name, {std::as_bytes(std::span(file.head))}};
    for (const NamedArray& array : file.arrays) view.chunks.emplace_back(array.bytes);
    views.push_back(std::move(view));
  }
  return views;
}

RunProgress restore_checkpoint(const std::string& folder, Trainer& trainer) {
  const std::string model_file = model_path(folder), fp8_file = fp8_state_path(folder),
                    optimizer_file = optimizer_path(folder);
  load_parameters(trainer.model(), read_part(model_file), model_file);
  restore_fp8_state(trainer.backend(), trainer.model(), fp8_state_from(read_part(fp8_file), fp8_file));
  const Safetensors optimizer = read_part(optimizer_file);
  restore_moments(trainer, optimizer, optimizer_file);
  const RunProgress progress = progress_from(folder + "/" + kProgressFile);
  trainer.optimizer().set_steps(step_of(optimizer, optimizer_file) - progress.skipped);
  return progress;
}

}  // namespace quaver
