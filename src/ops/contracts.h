/// What every operation of backend.h asks of its arguments. Each backend calls these first; a breach is an
/// Error(usage) that names the operation, the operand, and both shapes or types.
#pragma once

#include "quaver/backend.h"

namespace quaver {

/// Whether an output that may be absent asks for something.
inline bool is_wanted(const Output& output) {
  return output.values.defined() || output.quantized.defined();
}

/// Which operands a backend multiplies beside real ones of one type: FP8 with one scale each; two in blocks as well; anything
/// quantised or BF16 beside another.
enum class OperandForms { one_scale, blocks, any };
/// out is [m, n]; the contraction has k terms.
struct GemmSize {
  std::int64_t m = 0, n = 0, k = 0;
};
GemmSize check_gemm(Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& bias,
                    const Tensor& out, OperandForms forms = OperandForms::one_scale);
/// transposed_alone: whether `out` may lack its row-major bytes.
void check_quantize(const Tensor& x, const OperandCast& cast, const Tensor& counters,
                    const QuantizedTensor& out, bool transposed_alone = false);
void check_dequantize(const QuantizedTensor& q, const Tensor& values);

void check_copy(const Tensor& source, const Tensor& destination);
void check_gather(std::span<const Tensor> sources, const Tensor& destination);
void check_fill(const Tensor& destination);
void check_fill_normal(const Tensor& destination);
void check_convert(const Tensor& source, const Tensor& destination);
void check_cast(const Tensor& x, const Output& output);
void check_count_exponents(const Tensor& x, const Tensor& counts);
void check_sum_rows(const Tensor& x, const Tensor& sums);
void check_column_scales(const Tensor& x, const Tensor& scale, const Tensor& inverse);
void check_scale_columns(const Tensor& x, const Tensor& factors, const Tensor& out);

/// mean and bias are absent for RMSNorm; rstd (and mean) may be absent in a forward.
void check_norm(std::string_view operation, const NormInput& x, const Tensor& gain, const Tensor& bias,
                const Output& y, const Tensor& mean, const Tensor& rstd);
void check_norm_backward(std::string_view operation, const Tensor& dy, const Tensor& x, const Tensor& gain,
                         const Tensor& mean, const Tensor& rstd, bool accumulate_dx, const Output& dx,
                         const Tensor& dgain, const Tensor& dbias);

void check_add(const Tensor& a, const Tensor& b, const Tensor& out);
void check_activation(Activation kind, const Tensor& gate, const Tensor& up, const Output& h);
/// transposed_alone: whether what is written again may lack its row-major bytes.
void check_activation_backward(Activation kind, const Tensor& dh, const Tensor& gate, const Tensor& up,
                               const Output& dgate, const Output& dup, const Output& h,
                               bool transposed_alone);
void check_gate(const Tensor& o, const Tensor& g, const Output& y);
void check_gate_backward(const Tensor& dy, const Tensor& o, const Tensor& g, const Tensor& d_o,
                         const Output& dg, const Output& y, bool transposed_alone);

void check_transform_heads(const HeadTransform& transform, const Tensor& x, const Tensor& positions,
                           const Tensor& out);
void check_transform_heads_backward(const HeadTransform& transform, const Tensor& dout, const Tensor& x,
                                    const Tensor& positions, const Output& dx, const Tensor& dgain);
void check_attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                     const Tensor& first_key, const Tensor& out, const Tensor& lse);
void check_attention_backward(const AttentionShape& shape, const Tensor& dout, const Tensor& q,
                              const Tensor& k, const Tensor& v, const Tensor& first_key, const Tensor& out,
                              const Tensor& lse, const Tensor& dq, const Tensor& dk, const Tensor& dv);

void check_embedding(const Tensor& tokens, const Tensor& table, const Tensor& positions,
                     const Tensor& position_table, const Tensor& out);
void check_embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& positions,
                              const Tensor& dtable, const Tensor& dposition_table);
void check_cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses,
                         const Output& dlogits);

void check_global_norm(std::span<const Tensor> tensors, const Tensor& result);
void check_adamw(const Tensor& norm, std::span<const AdamWTensor> tensors);
void check_refuse_non_finite_casts(const Tensor& before, const Tensor& after, const Tensor& norm);
void check_refuse_non_finite(const Tensor& values, const Tensor& norm);
void check_update_scales(std::span<const ScaleUpdate> updates);

}  // namespace quaver
