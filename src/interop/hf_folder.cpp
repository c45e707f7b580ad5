#include "interop/hf_folder.h"

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/files.h"
#include "formats/safetensors.h"

namespace quaver {
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

std::uint64_t stored_bytes(const FloatArray& array, DType dtype) {
  return array.values.size() * size_of(dtype);
}

NamedArray store(const std::string& name, const FloatArray& array, DType dtype) {
  NamedArray stored{name, dtype, array.shape, {}};
  stored.bytes.resize(stored_bytes(array, dtype));
  if (dtype == DType::f32) {
    std::memcpy(stored.bytes.data(), array.values.data(), stored.bytes.size());
    return stored;
  }
  for (std::size_t i = 0; i < array.values.size(); ++i) {
    const bf16 value = to_bf16(array.values[i]);
    std::memcpy(stored.bytes.data() + i * sizeof value, &value, sizeof value);
  }
  return stored;
}

FloatArray load(const MappedArray& stored, const std::string& path) {
  FloatArray array{stored.shape, std::vector<float>(static_cast<std::size_t>(element_count(stored.shape)))};
  if (stored.dtype == DType::f32) {
    std::memcpy(array.values.data(), stored.bytes.data(), stored.bytes.size());
    return array;
  }
  if (stored.dtype != DType::bf16)
    fail(ErrorKind::data, "{}: {} is of type {}; supported: f32, bf16", path, stored.name,
         name_of(stored.dtype));
  for (std::size_t i = 0; i < array.values.size(); ++i) {
    bf16 value;
    std::memcpy(&value, stored.bytes.data() + i * sizeof value, sizeof value);
    array.values[i] = to_float(value);
  }
  return array;
}

/// Names of the arrays of each shard, in order.
std::vector<std::vector<std::string>> cut(const FloatArrays& arrays, DType dtype, std::uint64_t shard_bytes) {
  std::vector<std::vector<std::string>> shards(1);
  std::uint64_t bytes = 0;
  for (const auto& [name, array] : arrays) {
    const std::uint64_t more = stored_bytes(array, dtype);
    if (!shards.back().empty() && bytes + more > shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(name);
    bytes += more;
  }
  return shards;
}

/// File of each array, as the index says. Nothing for a folder with one file.
std::map<std::string, std::string> read_index(const std::string& folder) {
  const std::string path = folder + "/" + kIndexFile;
  std::map<std::string, std::string> files;
  if (!std::filesystem::exists(path)) return files;
  const auto index = nlohmann::json::parse(read_file(path), nullptr, false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    fail(ErrorKind::data, "{}: expected a JSON object with the object weight_map", path);
  for (const auto& [name, file] : index["weight_map"].items()) {
    const std::string text = file.is_string() ? file.get<std::string>() : "";
    if (text.empty() || text.find('/') != std::string::npos)
      fail(ErrorKind::data, "{}: {}: expected the name of a file in this folder, found {}", path, name,
           file.dump());
    files[name] = text;
  }
  return files;
}

void read_shard(const std::string& path, FloatArrays& arrays) {
  const MappedSafetensors file(path);
  for (const MappedArray& stored : file.arrays()) {
    if (!arrays.emplace(stored.name, load(stored, path)).second)
      fail(ErrorKind::data, "{}: {} stands in another shard too", path, stored.name);
  }
}

}  // namespace

void write_hf_weights(const std::string& folder, const FloatArrays& arrays, DType dtype,
                      std::uint64_t shard_bytes) {
  const auto shards = cut(arrays, dtype, shard_bytes);
  auto weight_map = nlohmann::ordered_json::object();
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string file = shards.size() == 1
                                 ? kSingleFile
                                 : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    std::vector<NamedArray> stored;
    for (const std::string& name : shards[i]) {
      stored.push_back(store(name, arrays.at(name), dtype));
      total += stored.back().bytes.size();
      weight_map[name] = file;
    }
    // transformers refuses files without this entry.
    write_safetensors(folder + "/" + file, stored, {{"format", "pt"}});
  }
  if (shards.size() == 1) return;
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}},
                                        {"weight_map", std::move(weight_map)}};
  write_file_atomically(folder + "/" + kIndexFile, index.dump(2) + "\n");
}

FloatArrays read_hf_weights(const std::string& folder) {
  FloatArrays arrays;
  const auto index = read_index(folder);
  if (index.empty()) {
    read_shard(folder + "/" + kSingleFile, arrays);
    return arrays;
  }
  std::set<std::string> files;
  for (const auto& [name, file] : index) files.insert(file);
  for (const std::string& file : files) read_shard(folder + "/" + file, arrays);
  for (const auto& [name, file] : index) {
    if (!arrays.contains(name))
      fail(ErrorKind::data, "{}/{}: says that {} holds {}, which no shard does", folder, kIndexFile, file,
           name);
  }
  return arrays;
}

}  // namespace quaver
