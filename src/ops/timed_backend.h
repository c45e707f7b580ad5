/// A backend that passes every operation on to another one and records, by operation, calls, time, and what the operands
/// ask for: bytes and floating-point operations.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "base/busy_timer.h"
#include "quaver/backend.h"

namespace quaver {

struct OperationTotals {
  std::int64_t calls = 0;
  double seconds = 0;
  double bytes = 0;  ///< of the operands, each counted once a call: what the operation must read and write
  double flops = 0;  ///< of matrix products and attention (causal work only); 0 elsewhere
};

/// For host backends: an operation has ended when its call returns, and run_repeated runs everything directly.
class TimedBackend : public Backend {
 public:
  /// `threads`: of `inner`, for the timer (base/busy_timer.h). All calls come from the constructing thread.
  TimedBackend(std::shared_ptr<Backend> inner, int threads) : inner_(std::move(inner)), timer_(threads) {}

  /// What was recorded since the last call, by operation: "gemm fprop e4m3", "rms_norm", ….
  std::map<std::string, OperationTotals> take() { return std::exchange(totals_, {}); }

  std::string_view name() const override { return inner_->name(); }
  Device device() const override { return inner_->device(); }
  std::string describe() const override { return inner_->describe(); }
  bool needs_transposed_fp8() const override { return inner_->needs_transposed_fp8(); }
  bool reads_swizzled_scales() const override { return inner_->reads_swizzled_scales(); }
  MemoryUse memory_use() const override { return inner_->memory_use(); }
  bool has_column_scales() const override { return inner_->has_column_scales(); }
  std::string why_no_cast(const OperandCast& cast) const override { return inner_->why_no_cast(cast); }
  bool mixes_operands() const override { return inner_->mixes_operands(); }

  Tensor allocate(DType dtype, Shape shape) override;
  void copy_from_host(const void* source, const Tensor& destination) override;
  void copy_to_host(const Tensor& source, void* destination) override;
  void copy(const Tensor& source, const Tensor& destination) override;
  void gather(std::span<const Tensor> sources, const Tensor& destination) override;
  void fill(const Tensor& destination, double value) override;
  void fill_normal(const Tensor& destination, float mean, float std, std::uint64_t seed,
                   std::uint64_t stream) override;
  void convert(const Tensor& source, const Tensor& destination) override;
  void cast(const Tensor& x, const Output& output) override;
  void quantize(const Tensor& x, const OperandCast& cast, const CastNoise& noise, const Tensor& counters,
                const QuantizedTensor& out) override;
  void dequantize(const QuantizedTensor& q, const Tensor& values) override;
  void count_exponents(const Tensor& x, const Tensor& counts) override;
  void column_scales(const Tensor& x, const Tensor& scale, const Tensor& inverse) override;
  void scale_columns(const Tensor& x, const Tensor& factors, const Tensor& out) override;
  void gemm(Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& bias, bool accumulate,
            const Tensor& out) override;
  std::string last_gemm_kernel() const override { return inner_->last_gemm_kernel(); }
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
  void refuse_non_finite_casts(const Tensor& before, const Tensor& after, const Tensor& norm) override;
  void refuse_non_finite(const Tensor& values, const Tensor& norm) override;
  void update_scales(std::span<const ScaleUpdate> updates) override;

 private:
  template <typename Body>
  void timed(const std::string& operation, double bytes, const Body& body, double flops = 0);

  std::shared_ptr<Backend> inner_;
  BusyTimer timer_;
  std::map<std::string, OperationTotals> totals_;
};

}  // namespace quaver
