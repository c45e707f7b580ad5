/// What the programs of this folder share: random parameters, and tensors as arrays of a safetensors file.
#pragma once

#include <string>
#include <vector>

#include "base/random.h"
#include "formats/safetensors.h"
#include "quaver/backend.h"
#include "quaver/language_model.h"

namespace quaver {

class Disturb : public ModuleVisitor {
 public:
  explicit Disturb(Backend& backend) : backend_(backend) {}
  void parameter(const std::string& name, Parameter& parameter) override {
    std::vector<float> values = download(backend_, parameter.value);
    const Random random(7, stable_hash(name));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += 0.1f * random.normal(i);
    backend_.copy_from_host(values.data(), parameter.value);
    ++parameter.version;
  }

 private:
  Backend& backend_;
};

inline NamedArray to_array(Backend& backend, const std::string& name, const Tensor& tensor) {
  NamedArray array{name, tensor.dtype(), tensor.shape(), {}};
  array.bytes.resize(static_cast<std::size_t>(tensor.elements()) * size_of(tensor.dtype()));
  backend.copy_to_host(tensor, array.bytes.data());
  return array;
}

/// Adds noise to every parameter, so that no gain is 1 and no bias is 0.
inline void disturb(LanguageModel& model) {
  Disturb visitor(model.backend());
  model.visit("", visitor);
}

}  // namespace quaver
