#include "ops/timed_backend.h"

namespace quaver {
namespace {

double bytes_of(const Tensor& tensor) {
  return tensor ? static_cast<double>(tensor.elements()) * static_cast<double>(size_of(tensor.dtype())) : 0;
}
double bytes_of(const QuantizedTensor& q) {
  return bytes_of(q.bytes) + bytes_of(q.transposed) + bytes_of(q.blocks.scale_inv);
}
double bytes_of(const Output& output) {
  return bytes_of(output.values) + bytes_of(output.quantized);
}
double bytes_of(const NormInput& input) {
  return bytes_of(input.x) + (input.addend ? bytes_of(input.addend) + bytes_of(input.sum) : 0);
}
/// As stored one way: a product reads one of the two.
double bytes_of(const GemmOperand& operand) {
  return bytes_of(operand.values ? operand.values : operand.transposed) + bytes_of(operand.blocks.scale_inv);
}

template <typename... Operands>
double sum_of_bytes(const Operands&... operands) {
  return (bytes_of(operands) + ... + 0.0);
}

double sum_of_bytes(std::span<const Tensor> tensors) {
  double bytes = 0;
  for (const Tensor& tensor : tensors) bytes += bytes_of(tensor);
  return bytes;
}

/// "rms_norm", or "rms_norm, e4m3" where FP8 is written.
std::string named(const char* operation, const Output& output) {
  if (!output.quantized.defined()) return operation;
  return std::string(operation) + ", " + std::string(name_of(output.quantizer.format));
}

/// One product of queries with keys, causal work only.
double attention_product(const AttentionShape& shape) {
  const auto earlier = static_cast<double>(shape.key_len - shape.query_len);
  const auto queries = static_cast<double>(shape.query_len);
  const double pairs = queries * earlier + queries * queries / 2;
  return 2 * static_cast<double>(shape.batch * shape.heads * shape.head_dim) * pairs;
}

}  // namespace

template <typename Body>
void TimedBackend::timed(const std::string& operation, double bytes, const Body& body, double flops) {
  const double begin = timer_.seconds();
  body();
  const double seconds = timer_.seconds() - begin;
  OperationTotals& totals = totals_[operation];
  ++totals.calls;
  totals.seconds += seconds;
  totals.bytes += bytes;
  totals.flops += flops;
}

Tensor TimedBackend::allocate(DType dtype, Shape shape) {
  Tensor tensor;
  timed("allocate", 0, [&] { tensor = inner_->allocate(dtype, std::move(shape)); });
  return tensor;
}

void TimedBackend::copy_from_host(const void* source, const Tensor& destination) {
  timed("copy", 2 * bytes_of(destination), [&] { inner_->copy_from_host(source, destination); });
}

void TimedBackend::copy_to_host(const Tensor& source, void* destination) {
  timed("copy", 2 * bytes_of(source), [&] { inner_->copy_to_host(source, destination); });
}

void TimedBackend::copy(const Tensor& source, const Tensor& destination) {
  timed("copy", sum_of_bytes(source, destination), [&] { inner_->copy(source, destination); });
}

void TimedBackend::gather(std::span<const Tensor> sources, const Tensor& destination) {
  timed("gather", 2 * bytes_of(destination), [&] { inner_->gather(sources, destination); });
}

void TimedBackend::fill(const Tensor& destination, double value) {
  timed("fill", bytes_of(destination), [&] { inner_->fill(destination, value); });
}

void TimedBackend::fill_normal(const Tensor& destination, float mean, float std, std::uint64_t seed,
                               std::uint64_t stream) {
  timed("fill_normal", bytes_of(destination),
        [&] { inner_->fill_normal(destination, mean, std, seed, stream); });
}

void TimedBackend::convert(const Tensor& source, const Tensor& destination) {
  timed("convert", sum_of_bytes(source, destination), [&] { inner_->convert(source, destination); });
}

void TimedBackend::cast(const Tensor& x, const Output& output) {
  timed("cast " + std::string(name_of(x.dtype())) + " to " + std::string(name_of(output.quantizer.format)),
        sum_of_bytes(x, output), [&] { inner_->cast(x, output); });
}

void TimedBackend::quantize(const Tensor& x, const OperandCast& cast, const CastNoise& noise,
                            const Tensor& counters, const QuantizedTensor& out) {
  timed("quantize", sum_of_bytes(x, out), [&] { inner_->quantize(x, cast, noise, counters, out); });
}

void TimedBackend::dequantize(const QuantizedTensor& q, const Tensor& values) {
  timed("dequantize", sum_of_bytes(q, values), [&] { inner_->dequantize(q, values); });
}

void TimedBackend::count_exponents(const Tensor& x, const Tensor& counts) {
  timed("count_exponents", bytes_of(x), [&] { inner_->count_exponents(x, counts); });
}

void TimedBackend::column_scales(const Tensor& x, const Tensor& scale, const Tensor& inverse) {
  timed("column_scales", sum_of_bytes(x, scale, inverse), [&] { inner_->column_scales(x, scale, inverse); });
}

void TimedBackend::scale_columns(const Tensor& x, const Tensor& factors, const Tensor& out) {
  timed("scale_columns", sum_of_bytes(x, factors, out), [&] { inner_->scale_columns(x, factors, out); });
}

void TimedBackend::gemm(Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& bias,
                        bool accumulate, const Tensor& out) {
  const std::int64_t contraction = kind == Gemm::wgrad ? a.rows() : a.cols();
  timed(
      "gemm " + std::string(name_of(kind)) + " " + std::string(name_of(a.dtype())),
      sum_of_bytes(a, b, bias, out) + (accumulate ? bytes_of(out) : 0),
      [&] { inner_->gemm(kind, a, b, bias, accumulate, out); },
      2.0 * static_cast<double>(out.elements()) * static_cast<double>(contraction));
}

void TimedBackend::sum_rows(const Tensor& x, const Tensor& sums) {
  timed("sum_rows", sum_of_bytes(x, sums, sums), [&] { inner_->sum_rows(x, sums); });
}

void TimedBackend::rms_norm(const NormInput& x, const Tensor& gain, float epsilon, const Output& y,
                            const Tensor& rstd) {
  timed(named(x.addend ? "add and rms_norm" : "rms_norm", y), sum_of_bytes(x, gain, y, rstd),
        [&] { inner_->rms_norm(x, gain, epsilon, y, rstd); });
}

void TimedBackend::rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain,
                                     const Tensor& rstd, bool accumulate_dx, const Output& dx,
                                     const Tensor& dgain) {
  timed(named("rms_norm backward", dx),
        sum_of_bytes(dy, x, gain, rstd, dx, dgain, dgain) + (accumulate_dx ? bytes_of(dx.values) : 0),
        [&] { inner_->rms_norm_backward(dy, x, gain, rstd, accumulate_dx, dx, dgain); });
}

void TimedBackend::layer_norm(const NormInput& x, const Tensor& gain, const Tensor& bias, float epsilon,
                              const Output& y, const Tensor& mean, const Tensor& rstd) {
  timed(named(x.addend ? "add and layer_norm" : "layer_norm", y), sum_of_bytes(x, gain, bias, y, mean, rstd),
        [&] { inner_->layer_norm(x, gain, bias, epsilon, y, mean, rstd); });
}

void TimedBackend::layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain,
                                       const Tensor& mean, const Tensor& rstd, bool accumulate_dx,
                                       const Output& dx, const Tensor& dgain, const Tensor& dbias) {
  timed(named("layer_norm backward", dx),
        sum_of_bytes(dy, x, gain, mean, rstd, dx, dgain, dgain, dbias, dbias) +
            (accumulate_dx ? bytes_of(dx.values) : 0),
        [&] { inner_->layer_norm_backward(dy, x, gain, mean, rstd, accumulate_dx, dx, dgain, dbias); });
}

void TimedBackend::add(const Tensor& a, const Tensor& b, const Tensor& out) {
  timed("add", sum_of_bytes(a, b, out), [&] { inner_->add(a, b, out); });
}

void TimedBackend::activation(Activation kind, const Tensor& gate, const Tensor& up, const Output& h) {
  timed(named("activation", h), sum_of_bytes(gate, up, h), [&] { inner_->activation(kind, gate, up, h); });
}

void TimedBackend::activation_backward(Activation kind, const Tensor& dh, const Tensor& gate,
                                       const Tensor& up, const Output& dgate, const Output& dup,
                                       const Output& h) {
  timed(named("activation backward", dup), sum_of_bytes(dh, gate, up, dgate, dup, h),
        [&] { inner_->activation_backward(kind, dh, gate, up, dgate, dup, h); });
}

void TimedBackend::gate(GateActivation kind, const Tensor& o, const Tensor& g, const Output& y) {
  timed(named("gate", y), sum_of_bytes(o, g, y), [&] { inner_->gate(kind, o, g, y); });
}

void TimedBackend::gate_backward(GateActivation kind, const Tensor& dy, const Tensor& o, const Tensor& g,
                                 const Tensor& d_o, const Output& dg, const Output& y) {
  timed(named("gate backward", dg), sum_of_bytes(dy, o, g, d_o, dg, y),
        [&] { inner_->gate_backward(kind, dy, o, g, d_o, dg, y); });
}

void TimedBackend::transform_heads(const HeadTransform& transform, const Tensor& x, const Tensor& positions,
                                   const Tensor& out) {
  timed("transform_heads", sum_of_bytes(x, positions, out),
        [&] { inner_->transform_heads(transform, x, positions, out); });
}

void TimedBackend::transform_heads_backward(const HeadTransform& transform, const Tensor& dout,
                                            const Tensor& x, const Tensor& positions, const Output& dx,
                                            const Tensor& dgain) {
  const bool reads_x = transform.norm != QkNorm::none;
  timed(named("transform_heads backward", dx),
        sum_of_bytes(dout, positions, dx, dgain, dgain) + (reads_x ? bytes_of(x) : 0),
        [&] { inner_->transform_heads_backward(transform, dout, x, positions, dx, dgain); });
}

void TimedBackend::attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                             const Tensor& first_key, const Tensor& out, const Tensor& lse) {
  timed(
      "attention", sum_of_bytes(q, k, v, first_key, out, lse),
      [&] { inner_->attention(shape, q, k, v, first_key, out, lse); }, 2 * attention_product(shape));
}

void TimedBackend::attention_backward(const AttentionShape& shape, const Tensor& dout, const Tensor& q,
                                      const Tensor& k, const Tensor& v, const Tensor& first_key,
                                      const Tensor& out, const Tensor& lse, const Tensor& dq,
                                      const Tensor& dk, const Tensor& dv) {
  timed(
      "attention backward", sum_of_bytes(dout, q, k, v, first_key, out, lse, dq, dk, dv),
      [&] { inner_->attention_backward(shape, dout, q, k, v, first_key, out, lse, dq, dk, dv); },
      5 * attention_product(shape));
}

void TimedBackend::embedding(const Tensor& tokens, const Tensor& table, const Tensor& positions,
                             const Tensor& position_table, const Tensor& out) {
  // A row of the table for every token.
  const double rows = 4.0 * static_cast<double>(out.elements()) * (position_table ? 2 : 1);
  timed("embedding", sum_of_bytes(tokens, out) + rows,
        [&] { inner_->embedding(tokens, table, positions, position_table, out); });
}

void TimedBackend::embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& positions,
                                      const Tensor& dtable, const Tensor& dposition_table) {
  const double rows = 8.0 * static_cast<double>(dout.elements()) * (dposition_table ? 2 : 1);
  timed("embedding backward", sum_of_bytes(tokens, dout) + rows,
        [&] { inner_->embedding_backward(dout, tokens, positions, dtable, dposition_table); });
}

void TimedBackend::cross_entropy(const Tensor& logits, const Tensor& targets, float gradient_scale,
                                 const Tensor& losses, const Output& dlogits) {
  timed(named("cross_entropy", dlogits), sum_of_bytes(logits, targets, losses, dlogits),
        [&] { inner_->cross_entropy(logits, targets, gradient_scale, losses, dlogits); });
}

void TimedBackend::global_norm(std::span<const Tensor> tensors, const Tensor& result) {
  timed("global_norm", sum_of_bytes(tensors), [&] { inner_->global_norm(tensors, result); });
}

void TimedBackend::adamw(const AdamWStep& step, const Tensor& norm, float max_norm,
                         std::span<const AdamWTensor> tensors) {
  double bytes = 0;
  for (const AdamWTensor& tensor : tensors) {
    bytes += sum_of_bytes(tensor.gradient, tensor.value, tensor.value, tensor.copies.bf16, tensor.copies.fp8);
    bytes += 2 * sum_of_bytes(tensor.m, tensor.v, tensor.m_scales, tensor.v_scales);
  }
  timed("adamw", bytes, [&] { inner_->adamw(step, norm, max_norm, tensors); });
}

void TimedBackend::refuse_non_finite_casts(const Tensor& before, const Tensor& after, const Tensor& norm) {
  timed("refuse_non_finite_casts", sum_of_bytes(before, after),
        [&] { inner_->refuse_non_finite_casts(before, after, norm); });
}

void TimedBackend::refuse_non_finite(const Tensor& values, const Tensor& norm) {
  timed("refuse_non_finite", sum_of_bytes(values), [&] { inner_->refuse_non_finite(values, norm); });
}

void TimedBackend::update_scales(std::span<const ScaleUpdate> updates) {
  timed("update_scales", 0, [&] { inner_->update_scales(updates); });
}

}  // namespace quaver
