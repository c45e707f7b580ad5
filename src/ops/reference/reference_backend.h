/// The specification as code: plain scalar loops that read like the formulas of backend.h. Every other
/// backend is compared with this one. One family of operations per file.
#pragma once

#include "ops/host_backend.h"

namespace quaver {

class ReferenceBackend : public HostBackend {
 public:
  using HostBackend::HostBackend;
  /// `products` = fast: BF16 and FP8 products in the order of the CPU backend's matrix unit (Intel AMX).
  explicit ReferenceBackend(Products products) : products_(products) {}

  std::string_view name() const override { return "reference"; }
  std::string describe() const override {
    return products_ == Products::fast ? "reference (scalar, one thread, sums of a matrix unit)"
                                       : "reference (scalar, one thread)";
  }

  void copy(const Tensor& source, const Tensor& destination) override;
  void fill(const Tensor& destination, double value) override;
  void fill_normal(const Tensor& destination, float mean, float std, std::uint64_t seed,
                   std::uint64_t stream) override;
  void convert(const Tensor& source, const Tensor& destination) override;
  void cast(const Tensor& x, const Output& output) override;
  void quantize(const Tensor& x, const OperandCast& cast, const CastNoise& noise, const Tensor& counters,
                const QuantizedTensor& out) override;
  void dequantize(const QuantizedTensor& q, const Tensor& values) override;
  void count_exponents(const Tensor& x, const Tensor& counts) override;
  bool has_column_scales() const override { return true; }
  void column_scales(const Tensor& x, const Tensor& scale, const Tensor& inverse) override;
  void scale_columns(const Tensor& x, const Tensor& factors, const Tensor& out) override;
  void gemm(Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& bias, bool accumulate,
            const Tensor& out) override;
  std::string last_gemm_kernel() const override { return "reference"; }
  void sum_rows(const Tensor& x, const Tensor& sums) override;
  void rms_norm(const NormInput& x, const Tensor& gain, float epsilon, const Output& y,
                const Tensor& rstd) override;
  void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& rstd,
                         bool accumulate_dx, const Output& dx, const Tensor& dgain) override;
  void layer_norm(const NormInput& x, const Tensor& gain, const Tensor& bias, float epsilon, const Output& y,
                  const Tensor& mean, const Tensor& rstd) override;
  void layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& mean,
                           const Tensor& rstd, bool accumulate_dx, const Output& dx, const Tensor& dgain,
                           const Tensor& dbias) override;
  void add(const Tensor& a, const Tensor& b, const Tensor& out) override;
  void activation(Activation kind, const Tensor& gate, const Tensor& up, const Output& h) override;
  void activation_backward(Activation kind, const Tensor& dh, const Tensor& gate, const Tensor& up,
                           const Output& dgate, const Output& dup, const Output& h) override;
  void gate(GateActivation kind, const Tensor& o, const Tensor& g, const Output& y) override;
  void gate_backward(GateActivation kind, const Tensor& dy, const Tensor& o, const Tensor& g,
                     const Tensor& d_o, const Output& dg, const Output& y) override;
  void transform_heads(const HeadTransform& transform, const Tensor& x, const Tensor& positions,
                       const Tensor& out) override;
  void transform_heads_backward(const HeadTransform& transform, const Tensor& dout, const Tensor& x,
                                const Tensor& positions, const Output& dx, const Tensor& dgain) override;
  void attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                 const Tensor& first_key, const Tensor& out, const Tensor& lse) override;
  void attention_backward(const AttentionShape& shape, const Tensor& dout, const Tensor& q, const Tensor& k,
                          const Tensor& v, const Tensor& first_key, const Tensor& out, const Tensor& lse,
                          const Tensor& dq, const Tensor& dk, const Tensor& dv) override;
  void embedding(const Tensor& tokens, const Tensor& table, const Tensor& positions,
                 const Tensor& position_table, const Tensor& out) override;
  void embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& positions,
                          const Tensor& dtable, const Tensor& dposition_table) override;
  void cross_entropy(const Tensor& logits, const Tensor& targets, float gradient_scale, const Tensor& losses,
                     const Output& dlogits) override;
  void global_norm(std::span<const Tensor> tensors, const Tensor& result) override;
  void adamw(const AdamWStep& step, const Tensor& norm, float max_norm,
             std::span<const AdamWTensor> tensors) override;
  void update_scales(std::span<const ScaleUpdate> updates) override;

 private:
  Products products_ = Products::exact;
};

}  // namespace quaver
