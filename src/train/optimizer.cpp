#include "train/optimizer.h"

#include <map>
#include <string>
#include <utility>

#include "base/random.h"
#include "quaver/backend.h"
#include "quaver/linear.h"

namespace quaver {

class AdamW::Collector : public ModuleVisitor {
 public:
  Collector(Backend& backend, DType moments, std::vector<Entry>& entries)
      : backend_(backend), moments_(moments), entries_(entries) {}

  void parameter(const std::string& name, Parameter& parameter) override {
    const Shape& shape = parameter.value.shape();
    entries_.push_back(
        {name, &parameter, zeros(moments_, shape), zeros(moments_, shape), {}, {}, stable_hash(name)});
    if (moments_ != DType::e4m3) return;
    const Shape blocks{(parameter.value.elements() + kMomentBlock - 1) / kMomentBlock};
    entries_.back().m_scales = zeros(DType::f32, blocks);
    entries_.back().v_scales = zeros(DType::f32, blocks);
  }
  void linear(const std::string& /*name*/, Linear& linear) override {
    readers_.emplace(&linear.weight(), &linear);
  }

  /// After the visit: a module may share the weight of one that is visited later.
  void assign_readers() {
    for (Entry& entry : entries_) {
      const auto found = readers_.find(entry.parameter);
      if (found != readers_.end()) entry.reader = found->second;
    }
  }

 private:
  Tensor zeros(DType dtype, const Shape& shape) {
    Tensor tensor = backend_.allocate(dtype, shape);
    if (dtype == DType::e4m3) {
      const std::vector<std::uint8_t> codes(static_cast<std::size_t>(tensor.elements()));
      backend_.copy_from_host(codes.data(), tensor);
    } else {
      backend_.fill(tensor, 0);
    }
    return tensor;
  }

  Backend& backend_;
  DType moments_;
  std::vector<Entry>& entries_;
  std::map<const Parameter*, Linear*> readers_;
};

AdamW::AdamW(Backend& backend, Module& module, const Options& options)
    : backend_(backend), options_(options), norm_(backend.allocate(DType::f32, {1})) {
  Collector collector(backend, options.moments, entries_);
  module.visit("", collector);
  collector.assign_readers();
}

void AdamW::measure_norm() {
  std::vector<Tensor> gradients;
  gradients.reserve(entries_.size());
  for (const Entry& entry : entries_) gradients.push_back(entry.parameter->accumulated_gradient(backend_));
  backend_.global_norm(gradients, norm_);
}

float AdamW::gradient_norm() {
  measure_norm();
  return download(backend_, norm_).front();
}

bool AdamW::accepts(float norm) const {
  return is_usable_norm(norm, options_.clip);
}

float AdamW::step(float lr, const NormCheck& check) {
  begin_step(lr, check);
  return end_step();
}

void AdamW::begin_step(float lr, const NormCheck& check) {
  measure_norm();
  if (check) check(norm_);
  const AdamWStep step{lr,         options_.beta1, options_.beta2, options_.epsilon, options_.weight_decay,
                       steps_ + 1, options_.seed};
  std::vector<AdamWTensor> tensors;
  tensors.reserve(entries_.size());
  copies_.clear();
  for (const Entry& entry : entries_) {
    const Parameter& parameter = *entry.parameter;
    const bool is_matrix = parameter.value.shape().size() == 2;
    copies_.push_back(entry.reader ? entry.reader->next_weight_copies() : WeightCopies{});
    tensors.push_back({parameter.gradient, parameter.value, entry.m, entry.v, is_matrix, copies_.back(),
                       entry.m_scales, entry.v_scales, entry.noise_stream});
  }
  backend_.adamw(step, norm_, options_.clip, tensors);
}

float AdamW::end_step() {
  const std::vector<WeightCopies> copies = std::exchange(copies_, {});
  const float norm = download(backend_, norm_).front();
  if (!accepts(norm)) return norm;
  ++steps_;
  drop_gradients();
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].reader) entries_[i].reader->weight_copied_ahead(copies[i]);
  }
  return norm;
}

void AdamW::drop_gradients() {
  for (const Entry& entry : entries_) {
    ++entry.parameter->version;
    entry.parameter->clear_gradient();
  }
}

}  // namespace quaver
