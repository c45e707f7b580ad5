/// A model's parameters as plain arrays by name, in one layout whatever the model's packing.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "quaver/language_model.h"

namespace quaver {

struct FloatArray {
  Shape shape;
  std::vector<float> values;
};
using FloatArrays = std::map<std::string, FloatArray>;

/// Every parameter under its name, with qkv_proj taken apart into q_proj, k_proj, v_proj and gate_proj, and the feed-forward's
/// gate_up_proj into gate_proj and up_proj.
FloatArrays read_parameters(LanguageModel& model);

/// The opposite: `arrays` must hold exactly the parameters of the model, packed ones apart. Throws
/// Error(data).
void write_parameters(LanguageModel& model, FloatArrays arrays);

}  // namespace quaver
