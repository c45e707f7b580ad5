#include "ops/contracts.h"

#include <tuple>

#include "base/check.h"
#include "ops/operands.h"
#include "ops/scale_tiles.h"
#include "tensor/shape_text.h"

namespace quaver {
namespace {

/// FP8 with one scale for the tensor: such operands are multiplied as they are.
bool has_one_scale(const GemmOperand& operand) {
  return is_fp8(operand.dtype()) && !operand.blocks.scale_inv;
}

bool in_blocks(const GemmOperand& operand) {
  return operand.blocks.scale_inv.defined();
}

bool compatible(const GemmOperand& a, const GemmOperand& b, OperandForms forms) {
  const DType x = a.dtype(), y = b.dtype();
  if (x == DType::e5m2 && y == DType::e5m2) return false;
  if (has_one_scale(a) && has_one_scale(b)) return true;
  if (is_real(x) && x == y) return true;
  const auto widens = [](DType type) { return type == DType::bf16 || is_quantized(type); };
  return forms == OperandForms::any ? widens(x) && widens(y)
                                    : forms == OperandForms::blocks && in_blocks(a) && in_blocks(b);
}

std::string_view describe(OperandForms forms) {
  switch (forms) {
    case OperandForms::one_scale:
      return "both f32, both bf16, or fp8 but not both e5m2";
    case OperandForms::blocks:
      return "both f32, both bf16, both in blocks, or fp8 but not both e5m2";
    case OperandForms::any:
      return "both f32, or bf16 and quantised in any combination but e5m2 by e5m2";
  }
  return {};
}

GemmSize size_of_product(Gemm kind, const GemmOperand& a, const GemmOperand& b) {
  switch (kind) {
    case Gemm::fprop:
      return {a.rows(), b.rows(), a.cols()};
    case Gemm::dgrad:
      return {a.rows(), b.cols(), a.cols()};
    case Gemm::wgrad:
      return {a.cols(), b.cols(), a.rows()};
  }
  return {};
}

std::int64_t contraction_of_b(Gemm kind, const GemmOperand& b) {
  return kind == Gemm::fprop ? b.cols() : b.rows();
}

std::int64_t blocks_in(std::int64_t size, std::int64_t block) {
  return (size + block - 1) / block;
}

void check_quantized(const Operands& operands, const QuantizedTensor& q, DType format, const char* name,
                     std::int64_t rows, std::int64_t cols, bool transposed_alone = false) {
  if (format == DType::e2m1) {
    operands.expect_contiguous(q.bytes, name, DType::u8, {rows, (cols + 1) / 2});
  } else if (q.bytes || !transposed_alone) {
    operands.expect(q.bytes, name, format, {rows, cols});
  } else {
    operands.expect(q.transposed, name, format, {cols, rows});
  }
  operands.expect_optional(q.scale_inv, "scale_inv", DType::f32, {1});
  const BlockScales& blocks = q.blocks;
  if (!blocks.scale_inv) return;
  require(blocks.rows > 0 && blocks.cols > 0, "{}: blocks of {} x {}", name, blocks.rows, blocks.cols);
  const std::int64_t down = blocks_in(rows, blocks.rows), across = blocks_in(cols, blocks.cols);
  if (blocks.swizzled) {
    operands.expect_contiguous(
        blocks.scale_inv, "swizzled scale_inv of blocks", DType::e8m0,
        blocks.rows == 1 ? scale_tiles_shape(rows, across) : scale_tiles_shape(cols, down));
    return;
  }
  operands.expect(blocks.scale_inv, "scale_inv of blocks", blocks.scale_inv.dtype(), {down, across});
  if (blocks.transposed)
    operands.expect(blocks.transposed, "scale_inv of blocks, transposed", blocks.scale_inv.dtype(),
                    {across, down});
}

Shape head_matrix(const HeadTransform& transform, std::int64_t rows) {
  return {rows, (transform.heads + transform.untouched) * transform.head_dim};
}

void check_tables(const Operands& operands, const HeadTransform& transform, const Tensor& positions,
                  std::int64_t rows) {
  if (transform.norm != QkNorm::none) {
    operands.expect_contiguous(transform.gain, "gain", DType::f32, {transform.head_dim});
  }
  if (!transform.cosine) return;
  require(transform.cosine.shape().size() == 2 && 2 * transform.cosine.cols() <= transform.head_dim,
          "transform_heads: rotary tables of shape {} for heads of size {}",
          ShapeText{transform.cosine.shape()}, transform.head_dim);
  operands.expect_contiguous(transform.cosine, "cosine", DType::f32, transform.cosine.shape());
  operands.expect_contiguous(transform.sine, "sine", DType::f32, transform.cosine.shape());
  operands.expect_contiguous(positions, "positions", DType::i32, {rows});
}

}  // namespace

GemmSize check_gemm(Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& bias,
                    const Tensor& out, OperandForms forms) {
  const Operands operands(name_of(kind));
  for (const auto* operand : {&a, &b}) {
    const Tensor& stored = operand->values ? operand->values : operand->transposed;
    require(stored.defined() && stored.shape().size() == 2, "{}: operands must be matrices", name_of(kind));
    const bool reads_transposed = kind == Gemm::wgrad || (kind == Gemm::dgrad && operand == &b);
    require(operand->values.defined() || reads_transposed,
            "{}: an operand of which only transposed bytes are left", name_of(kind));
  }
  require(compatible(a, b, forms), "{}: cannot multiply {}{} by {}{} ({})", name_of(kind), a.dtype(),
          in_blocks(a) ? " in blocks" : "", b.dtype(), in_blocks(b) ? " in blocks" : "", describe(forms));
  const GemmSize size = size_of_product(kind, a, b);
  require(contraction_of_b(kind, b) == size.k, "{}: shapes [{}, {}] and [{}, {}] do not fit", name_of(kind),
          a.rows(), a.cols(), b.rows(), b.cols());
  for (const auto& [operand, name] : {std::pair(&a, "scale_inv of a"), std::pair(&b, "scale_inv of b")}) {
    if (has_one_scale(*operand)) operands.expect(operand->scale_inv, name, DType::f32, {1});
    operands.expect_optional(operand->scale_inv, name, DType::f32, {1});
  }
  operands.expect_real_matrix(out, "out");
  operands.expect(out, "out", out.dtype(), {size.m, size.n});
  require(kind == Gemm::fprop || !bias, "{}: only fprop takes a bias", name_of(kind));
  operands.expect_optional(bias, "bias", DType::f32, {size.n});
  return size;
}

void check_quantize(const Tensor& x, const OperandCast& cast, const Tensor& counters,
                    const QuantizedTensor& out, bool transposed_alone) {
  const Operands operands("quantize");
  operands.expect_real_matrix(x, "x");
  require(is_quantized(cast.format), "quantize: to {}, expected e4m3, e5m2 or e2m1", name_of(cast.format));
  require(cast.rule != nullptr, "quantize: the cast has no ScaleRule");
  require(out.defined() && out.blocks.scale_inv.defined() == cast.scales_blocks() &&
              out.blocks.rows == cast.block_rows && out.blocks.cols == cast.block_cols,
          "quantize: the output was allocated for another cast");
  check_quantized(operands, out, cast.format, "out", x.rows(), x.cols(), transposed_alone);
  if (cast.rule->scales_tensor() || !cast.scales_blocks())
    operands.expect_contiguous(out.scale_inv, "scale_inv", DType::f32, {1});
  operands.expect_optional(counters, "counters", DType::i64, {kCastCounters});
}

void check_dequantize(const QuantizedTensor& q, const Tensor& values) {
  const Operands operands("dequantize");
  operands.expect_real_matrix(values, "values");
  operands.expect(values, "values", DType::bf16, values.shape());
  require(q.defined(), "dequantize: the quantised tensor is absent");
  check_quantized(operands, q, q.e2m1_cols > 0 ? DType::e2m1 : q.bytes.dtype(), "q", values.rows(),
                  values.cols());
}

void check_copy(const Tensor& source, const Tensor& destination) {
  Operands("copy").expect(destination, "destination", source.dtype(), source.shape());
}

void check_gather(std::span<const Tensor> sources, const Tensor& destination) {
  require(destination.defined() && destination.contiguous(), "gather: expected a contiguous destination");
  const auto count = static_cast<std::int64_t>(sources.size());
  const Shape none;
  for (const Tensor& source : sources) {
    require(
        source.defined() && source.contiguous() && source.dtype() == destination.dtype() &&
            source.elements() * count == destination.elements(),
        "gather: expected {} contiguous tensors of {} that fill a destination of {} elements, found {} {}",
        count, name_of(destination.dtype()), destination.elements(),
        source.defined() ? name_of(source.dtype()) : "absent",
        ShapeText{source.defined() ? source.shape() : none});
  }
}

void check_fill(const Tensor& destination) {
  require(destination.defined() && destination.contiguous() && !is_fp8(destination.dtype()),
          "fill: expected a contiguous tensor that is not FP8");
}

void check_fill_normal(const Tensor& destination) {
  Operands("fill_normal").expect_contiguous(destination, "destination", DType::f32, destination.shape());
}

void check_convert(const Tensor& source, const Tensor& destination) {
  require(source.defined() && destination.defined(), "convert: a tensor is absent");
  require(is_real(source.dtype()) && is_real(destination.dtype()) && source.contiguous() &&
              destination.contiguous() && source.shape() == destination.shape(),
          "convert: expected contiguous real tensors of one shape, found {} {} and {} {}",
          name_of(source.dtype()), ShapeText{source.shape()}, name_of(destination.dtype()),
          ShapeText{destination.shape()});
}

void check_cast(const Tensor& x, const Output& output) {
  const Operands operands("cast");
  operands.expect_real_matrix(x, "x");
  operands.expect_output(output, "output", x.dtype(), x.shape());
}

void check_sum_rows(const Tensor& x, const Tensor& sums) {
  const Operands operands("sum_rows");
  operands.expect_real_matrix(x, "x");
  operands.expect_contiguous(sums, "sums", DType::f32, {x.cols()});
}

void check_column_scales(const Tensor& x, const Tensor& scale, const Tensor& inverse) {
  const Operands operands("column_scales");
  operands.expect_real_matrix(x, "x");
  operands.expect_contiguous(scale, "scale", DType::f32, {x.cols()});
  operands.expect_contiguous(inverse, "inverse", DType::f32, {x.cols()});
}

void check_scale_columns(const Tensor& x, const Tensor& factors, const Tensor& out) {
  const Operands operands("scale_columns");
  operands.expect_real_matrix(x, "x");
  operands.expect_contiguous(factors, "factors", DType::f32, {x.cols()});
  operands.expect(out, "out", x.dtype(), x.shape());
}

void check_norm(std::string_view operation, const NormInput& input, const Tensor& gain, const Tensor& bias,
                const Output& y, const Tensor& mean, const Tensor& rstd) {
  const Operands operands(operation);
  const Tensor& x = input.x;
  operands.expect_real_matrix(x, "x");
  if (input.addend) {
    operands.expect(input.addend, "addend", x.dtype(), x.shape());
    operands.expect(input.sum, "sum", x.dtype(), x.shape());
  }
  operands.expect_contiguous(gain, "gain", DType::f32, {x.cols()});
  operands.expect_optional(bias, "bias", DType::f32, {x.cols()});
  operands.expect_output(y, "y", x.dtype(), x.shape());
  operands.expect_optional(mean, "mean", DType::f32, {x.rows()});
  operands.expect_optional(rstd, "rstd", DType::f32, {x.rows()});
}

void check_norm_backward(std::string_view operation, const Tensor& dy, const Tensor& x, const Tensor& gain,
                         const Tensor& mean, const Tensor& rstd, bool accumulate_dx, const Output& dx,
                         const Tensor& dgain, const Tensor& dbias) {
  const Operands operands(operation);
  operands.expect_real_matrix(x, "x");
  operands.expect(dy, "dy", x.dtype(), x.shape());
  operands.expect_output(dx, "dx", x.dtype(), x.shape());
  if (accumulate_dx) operands.expect(dx.values, "dx", x.dtype(), x.shape());
  operands.expect_contiguous(gain, "gain", DType::f32, {x.cols()});
  operands.expect_contiguous(dgain, "dgain", DType::f32, {x.cols()});
  operands.expect_optional(dbias, "dbias", DType::f32, {x.cols()});
  operands.expect_optional(mean, "mean", DType::f32, {x.rows()});
  require(mean.defined() == dbias.defined(),
          "{}: LayerNorm has both mean and dbias, RMSNorm neither; {} is absent", operation,
          mean.defined() ? "dbias" : "mean");
  operands.expect_contiguous(rstd, "rstd", DType::f32, {x.rows()});
}

void check_add(const Tensor& a, const Tensor& b, const Tensor& out) {
  const Operands operands("add");
  operands.expect_real_matrix(a, "a");
  operands.expect(b, "b", a.dtype(), a.shape());
  operands.expect(out, "out", a.dtype(), a.shape());
}

void check_activation(Activation kind, const Tensor& gate, const Tensor& up, const Output& h) {
  const Operands operands("activation");
  operands.expect_real_matrix(up, "up");
  if (kind == Activation::gelu) {
    operands.expect_absent(gate, "gate");
  } else {
    operands.expect(gate, "gate", up.dtype(), up.shape());
  }
  operands.expect_output(h, "h", up.dtype(), up.shape());
}

void check_activation_backward(Activation kind, const Tensor& dh, const Tensor& gate, const Tensor& up,
                               const Output& dgate, const Output& dup, const Output& h,
                               bool transposed_alone) {
  const Operands operands("activation_backward");
  operands.expect_real_matrix(up, "up");
  operands.expect_output_again(h, "h", up.dtype(), up.shape(), transposed_alone);
  operands.expect(dh, "dh", up.dtype(), up.shape());
  operands.expect_output(dup, "dup", up.dtype(), up.shape());
  if (kind == Activation::gelu) return;
  operands.expect(gate, "gate", up.dtype(), up.shape());
  operands.expect_output(dgate, "dgate", up.dtype(), up.shape());
}

namespace {

void check_gate_operand(const Operands& operands, const Tensor& o, const Tensor& g) {
  operands.expect_real_matrix(o, "o");
  operands.expect_real_matrix(g, "g");
  require(g.cols() > 0 && o.cols() % g.cols() == 0, "gate: {} gates for {} elements", g.cols(), o.cols());
  operands.expect(g, "g", o.dtype(), {o.rows(), g.cols()});
}

}  // namespace

void check_gate(const Tensor& o, const Tensor& g, const Output& y) {
  const Operands operands("gate");
  check_gate_operand(operands, o, g);
  operands.expect_output(y, "y", o.dtype(), o.shape());
}

void check_gate_backward(const Tensor& dy, const Tensor& o, const Tensor& g, const Tensor& d_o,
                         const Output& dg, const Output& y, bool transposed_alone) {
  const Operands operands("gate_backward");
  check_gate_operand(operands, o, g);
  operands.expect(dy, "dy", o.dtype(), o.shape());
  operands.expect(d_o, "do", o.dtype(), o.shape());
  operands.expect_output(dg, "dg", o.dtype(), g.shape());
  operands.expect_output_again(y, "y", o.dtype(), o.shape(), transposed_alone);
}

void check_transform_heads(const HeadTransform& transform, const Tensor& x, const Tensor& positions,
                           const Tensor& out) {
  const Operands operands("transform_heads");
  operands.expect_real_matrix(x, "x");
  require(transform.untouched == 0, "transform_heads: {} untouched heads, of which backward alone has any",
          transform.untouched);
  operands.expect(x, "x", x.dtype(), head_matrix(transform, x.rows()));
  operands.expect(out, "out", x.dtype(), x.shape());
  check_tables(operands, transform, positions, x.rows());
}

void check_transform_heads_backward(const HeadTransform& transform, const Tensor& dout, const Tensor& x,
                                    const Tensor& positions, const Output& dx, const Tensor& dgain) {
  const Operands operands("transform_heads_backward");
  operands.expect_real_matrix(dout, "dout");
  operands.expect(dout, "dout", dout.dtype(), head_matrix(transform, dout.rows()));
  operands.expect_output(dx, "dx", dout.dtype(), dout.shape());
  check_tables(operands, transform, positions, dout.rows());
  if (transform.norm == QkNorm::none) return;
  require(transform.untouched == 0, "transform_heads_backward: {} untouched heads beside a norm",
          transform.untouched);
  operands.expect(x, "x", dout.dtype(), dout.shape());
  operands.expect_contiguous(dgain, "dgain", DType::f32, {transform.head_dim});
}

void check_attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                     const Tensor& first_key, const Tensor& out, const Tensor& lse) {
  const Operands operands("attention");
  require(shape.batch >= 0 && shape.query_len >= 0 && shape.key_len >= shape.query_len &&
              shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 && shape.head_dim > 0,
          "attention: batch {}, {} queries, {} keys, {} heads, {} key/value heads of size {}", shape.batch,
          shape.query_len, shape.key_len, shape.heads, shape.kv_heads, shape.head_dim);
  operands.expect_real_matrix(q, "q");
  const std::int64_t queries = shape.batch * shape.query_len, keys = shape.batch * shape.key_len;
  operands.expect(q, "q", q.dtype(), {queries, shape.heads * shape.head_dim});
  operands.expect(k, "k", q.dtype(), {keys, shape.kv_heads * shape.head_dim});
  operands.expect(v, "v", q.dtype(), {keys, shape.kv_heads * shape.head_dim});
  operands.expect(out, "out", q.dtype(), {queries, shape.heads * shape.head_dim});
  operands.expect_optional(first_key, "first_key", DType::i32, {queries});
  operands.expect_optional(lse, "lse", DType::f32, {queries, shape.heads});
}

void check_attention_backward(const AttentionShape& shape, const Tensor& dout, const Tensor& q,
                              const Tensor& k, const Tensor& v, const Tensor& first_key, const Tensor& out,
                              const Tensor& lse, const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  check_attention(shape, q, k, v, first_key, out, lse);
  const Operands operands("attention_backward");
  operands.expect(lse, "lse", DType::f32, {shape.batch * shape.query_len, shape.heads});
  operands.expect(dout, "dout", q.dtype(), q.shape());
  operands.expect(dq, "dq", q.dtype(), q.shape());
  operands.expect(dk, "dk", q.dtype(), k.shape());
  operands.expect(dv, "dv", q.dtype(), v.shape());
}

void check_embedding(const Tensor& tokens, const Tensor& table, const Tensor& positions,
                     const Tensor& position_table, const Tensor& out) {
  const Operands operands("embedding");
  operands.expect_real_matrix(out, "out");
  operands.expect_contiguous(tokens, "tokens", DType::i32, {out.rows()});
  operands.expect_real_matrix(table, "table");
  operands.expect_table(table, "table", table.dtype(), out.cols());
  if (!position_table) return;
  operands.expect_contiguous(positions, "positions", DType::i32, {out.rows()});
  operands.expect_table(position_table, "position_table", table.dtype(), out.cols());
}

void check_embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& positions,
                              const Tensor& dtable, const Tensor& dposition_table) {
  check_embedding(tokens, dtable, positions, dposition_table, dout);
  Operands("embedding_backward").expect(dtable, "dtable", DType::f32, dtable.shape());
}

void check_cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses,
                         const Output& dlogits) {
  const Operands operands("cross_entropy");
  operands.expect_real_matrix(logits, "logits");
  operands.expect_contiguous(targets, "targets", DType::i32, {logits.rows()});
  operands.expect_contiguous(losses, "losses", DType::f32, {logits.rows()});
  if (is_wanted(dlogits)) {
    operands.expect_output(dlogits, "dlogits", logits.dtype(), logits.shape());
  }
}

void check_global_norm(std::span<const Tensor> tensors, const Tensor& result) {
  const Operands operands("global_norm");
  for (const Tensor& tensor : tensors)
    operands.expect_contiguous(tensor, "tensor", DType::f32, tensor.shape());
  operands.expect(result, "result", DType::f32, {1});
}

void check_adamw(const Tensor& norm, std::span<const AdamWTensor> tensors) {
  const Operands operands("adamw");
  operands.expect(norm, "norm", DType::f32, {1});
  for (const AdamWTensor& tensor : tensors) {
    const auto& [value, copies] = std::tie(tensor.value, tensor.copies);
    require(value.defined() && is_real(value.dtype()),
            "adamw: expected a value of type f32 or bf16, found {}",
            value.defined() ? name_of(value.dtype()) : "none");
    operands.expect_contiguous(value, "value", value.dtype(), value.shape());
    operands.expect_contiguous(tensor.gradient, "gradient", DType::f32, value.shape());
    operands.expect_moments(tensor);
    if (copies.bf16) operands.expect_contiguous(copies.bf16, "copies.bf16", DType::bf16, value.shape());
    if (!copies.fp8.defined()) continue;
    operands.expect_real_matrix(value, "value");
    operands.expect_fp8(copies.fp8, copies.quantizer, "copies.fp8", value.shape());
  }
}

void check_count_exponents(const Tensor& x, const Tensor& counts) {
  const Operands operands("count_exponents");
  operands.expect_real_matrix(x, "x");
  operands.expect_contiguous(counts, "counts", DType::i64, {kExponents});
}

void check_refuse_non_finite_casts(const Tensor& before, const Tensor& after, const Tensor& norm) {
  const Operands operands("refuse_non_finite_casts");
  operands.expect(norm, "norm", DType::f32, {1});
  for (const Tensor& counters : {before, after}) {
    require(counters.shape().size() == 2, "refuse_non_finite_casts: expected matrices of counters");
    operands.expect_contiguous(counters, "counters", DType::i64, {counters.rows(), kCastCounters});
  }
}

void check_refuse_non_finite(const Tensor& values, const Tensor& norm) {
  const Operands operands("refuse_non_finite");
  operands.expect(norm, "norm", DType::f32, {1});
  operands.expect_contiguous(values, "values", DType::f32, values.shape());
}

void check_update_scales(std::span<const ScaleUpdate> updates) {
  const Operands operands("update_scales");
  for (const ScaleUpdate& update : updates) {
    operands.expect(update.slot.scale, "scale", DType::f32, {1});
    operands.expect_optional(update.slot.ahead_amax, "ahead_amax", DType::f32, {1});
    if (update.slot.ahead_amax) {
      operands.expect(update.slot.counters, "counters", DType::i64, {kCastCounters});
      operands.expect(update.slot.ahead_counters, "ahead_counters", DType::i64, {kCastCounters});
    }
    require(update.slot.amax_history.elements() >= 1, "update_scales: an empty amax history");
    require(update.algo != AmaxCompute::custom || (update.function && *update.function),
            "update_scales: amax_compute_algo = custom without an amax_function");
    operands.expect_contiguous(update.slot.amax_history, "amax_history", DType::f32,
                               update.slot.amax_history.shape());
  }
}

}  // namespace quaver
