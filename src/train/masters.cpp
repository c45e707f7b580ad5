#include "train/masters.h"

#include "quaver/backend.h"

namespace quaver {
namespace {

class MasterConverter : public ModuleVisitor {
 public:
  MasterConverter(Backend& backend, DType dtype) : backend_(backend), dtype_(dtype) {}

  void parameter(const std::string& /*name*/, Parameter& parameter) override {
    if (parameter.value.shape().size() != 2 || parameter.value.dtype() == dtype_) return;
    const Tensor stored = backend_.allocate(dtype_, parameter.value.shape());
    backend_.convert(parameter.value, stored);
    parameter.value = stored;
    ++parameter.version;
  }

 private:
  Backend& backend_;
  DType dtype_;
};

}  // namespace

void store_masters(LanguageModel& model, DType dtype) {
  Backend& backend = model.backend();
  MasterConverter converter(backend, dtype);
  model.visit("", converter);
}

}  // namespace quaver
