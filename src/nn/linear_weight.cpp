// The copies of a Linear's weight that its GEMMs read: kept until the master changes, or written ahead by an optimizer.
#include <algorithm>
#include <iterator>

#include "nn/linear_casts.h"

namespace quaver {

GemmOperand Linear::read_weight(Context& context, const Reading& reading, Gemm gemm) {
  if (reading.kind == Reading::Kind::real) return real_weight(context);
  if (context.replays()) return context.replayed_weight();
  const QuantizedTensor& copy =
      reading.kind == Reading::Kind::delayed ? fp8_weight(context) : cast_weight(context, reading, gemm);
  context.record_weight(copy);
  return copy;
}

const QuantizedTensor& Linear::cast_weight(Context& context, const Reading& reading, Gemm gemm) {
  const bool counts = context.gradients_enabled();
  auto known = std::find_if(cast_weights_.begin(), cast_weights_.end(),
                            [&](const CastWeight& copy) { return copy.cast == reading.cast; });
  if (known == cast_weights_.end()) {
    cast_weights_.push_back({reading.cast, allocate_quantized(backend_, reading.cast, options_.out_features,
                                                              options_.in_features)});
    known = std::prev(cast_weights_.end());
  }
  if (known->version == weight_->version && (known->counted || !counts)) return known->copy;
  // In its place, as in fp8_weight.
  quantize(context, weight_values(), reading.cast, OperandRole::weight, gemm, known->copy);
  known->version = weight_->version;
  known->counted = counts;
  ++weight_casts_;
  return known->copy;
}

const QuantizedTensor& Linear::fp8_weight(Context& context) {
  constexpr DType dtype = DType::e4m3;
  const bool must_stage = context.gradients_enabled();
  const bool current = fp8_weight_.version == weight_->version && fp8_weight_.dtype == dtype;
  if (!current || (must_stage && !fp8_weight_.staged)) {
    // A copy keeps its place while its type stays, so that a device meets the same addresses in every step. What an
    // earlier forward kept for its backward is overwritten, as the master is.
    discard_ahead();
    QuantizedTensor copy = fp8_weight_.dtype == dtype ? fp8_weight_.copy : QuantizedTensor();
    if (!copy.defined())
      copy = allocate_quantized(backend_, dtype, options_.out_features, options_.in_features);
    backend_.cast(weight_->value, {{}, copy, make_quantizer(*fp8_.weight, dtype, must_stage)});
    fp8_weight_ = {std::move(copy), weight_->version, dtype, must_stage};
  } else if (must_stage && fp8_weight_.ahead) {
    fp8_weight_.ahead = false;
  } else {
    return fp8_weight_.copy;
  }
  if (must_stage && context.counts_exponents()) count_exponents(weight_->value, *fp8_.weight);
  ++weight_casts_;
  return fp8_weight_.copy;
}

const Tensor& Linear::real_weight(Context& context) {
  const DType dtype = context.high_precision();
  if (dtype == weight_->value.dtype() && !weight_channels_) return weight_->value;
  if (real_weight_.version != weight_->version || real_weight_.dtype != dtype) {
    Tensor copy = real_weight_.dtype == dtype ? real_weight_.copy : Tensor();  // in its place, as above
    if (!copy) copy = backend_.allocate(dtype, weight_->value.shape());
    backend_.convert(weight_values(), copy);
    real_weight_ = {std::move(copy), weight_->version, dtype, false};
    ++weight_casts_;
  } else if (real_weight_.ahead) {
    real_weight_.ahead = false;
    ++weight_casts_;
  }
  return real_weight_.copy;
}

WeightCopies Linear::next_weight_copies() {
  WeightCopies next;
  discard_ahead();
  if (fp8_weight_.version == weight_->version && fp8_weight_.staged) {
    next.fp8 = fp8_weight_.copy;
    next.quantizer = {fp8_weight_.dtype, fp8_.weight->scale, fp8_.weight->ahead_amax,
                      fp8_.weight->ahead_counters};
  }
  const bool read = real_weight_.version == weight_->version && !real_weight_.ahead;
  // The next forward chooses other channel scales, if any.
  if (read && !weight_channels_ && real_weight_.dtype == DType::bf16) next.bf16 = real_weight_.copy;
  return next;
}

void Linear::weight_copied_ahead(const WeightCopies& copies) {
  const auto note = [&](auto& copy) {
    copy.version = weight_->version;
    copy.ahead = true;
  };
  if (copies.fp8.defined()) note(fp8_weight_);
  if (copies.bf16) note(real_weight_);
}

void Linear::discard_ahead() {
  if (!fp8_weight_.ahead) return;
  fp8_weight_.ahead = fp8_weight_.staged = false;
  backend_.fill(fp8_.weight->ahead_amax, 0);
  backend_.fill(fp8_.weight->ahead_counters, 0);
}

void Linear::drop_unread_weights(const Reading& fprop, const Reading& dgrad) {
  const auto reads = [&](Reading::Kind kind) { return fprop.kind == kind || dgrad.kind == kind; };
  if (!reads(Reading::Kind::delayed)) {
    discard_ahead();
    fp8_weight_ = {};
  }
  if (!reads(Reading::Kind::real)) real_weight_ = {};
  std::erase_if(cast_weights_, [&](const CastWeight& copy) {
    const auto reads_it = [&](const Reading& reading) {
      return reading.kind == Reading::Kind::cast && reading.cast == copy.cast;
    };
    return !reads_it(fprop) && !reads_it(dgrad);
  });
}

}  // namespace quaver
