/// Parameters and other state as the arrays and metadata of safetensors files.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "quaver/language_model.h"

namespace quaver {

/// A copy in host memory, of the tensor's type.
NamedArray to_array(Backend& backend, const std::string& name, const Tensor& tensor);
/// Fills `tensor` from the array of that name. Throws Error(data), naming `path`, when the file holds none of
/// its type and shape.
void load_array(Backend& backend, const Safetensors& file, const std::string& path, const std::string& name,
                const Tensor& tensor);

/// Every parameter under its dotted name.
std::vector<NamedArray> capture_parameters(LanguageModel& model);
/// Throws Error(data), naming `path`, unless the file holds the parameters of `model` and nothing else.
void load_parameters(LanguageModel& model, const Safetensors& file, const std::string& path);

/// The metadata of every file that belongs to a run: its format, and the optimizer steps behind it.
std::map<std::string, std::string> part_metadata(std::int64_t step);
/// A file with such metadata. Throws Error(data).
Safetensors read_part(const std::string& path);
std::string metadata_of(const Safetensors& file, const std::string& key, const std::string& path);
std::int64_t step_of(const Safetensors& file, const std::string& path);

}  // namespace quaver
