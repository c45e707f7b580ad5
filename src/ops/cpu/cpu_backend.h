/// The vectorised, threaded CPU backend. One operation per file: ops/cpu/<operation>.cpp checks arguments and
/// cuts the work, ops/cpu/kernels/<operation>.cpp computes.
///
/// Work is cut by shape alone and partial results are combined in a fixed order: results do not depend on the
/// number of threads. Nor do they depend on the instruction-set level, except for FP32 GEMMs and attention,
/// which fuse multiplications and additions where the level can. With `Products::fast` and a matrix unit, products of BF16 and FP8
/// numbers have that unit's bits.
#pragma once

#include <optional>

#include "base/threads.h"
#include "ops/cpu/few_rows_products.h"
#include "ops/cpu/levels.h"
#include "ops/host_backend.h"

namespace quaver {

namespace cpu {
class StoredStep;
}

class CpuBackend : public HostBackend {
 public:
  /// `threads` = 0 uses every processor. The level is `cpu::choose_level()`.
  explicit CpuBackend(int threads, Products products = Products::exact);
  /// With kernels of the caller's, compiled for `level`: for benchmarks of one against another.
  CpuBackend(int threads, cpu::Level level, const cpu::Kernels& kernels);

  std::string_view name() const override { return "cpu"; }
  std::string describe() const override;

  void copy(const Tensor& source, const Tensor& destination) override;
  void fill(const Tensor& destination, double value) override;
  void fill_normal(const Tensor& destination, float mean, float std, std::uint64_t seed,
                   std::uint64_t stream) override;
  void convert(const Tensor& source, const Tensor& destination) override;
  void cast(const Tensor& x, const Output& output) override;
  void quantize(const Tensor& x, const OperandCast& cast, const CastNoise& noise, const Tensor& counters,
                const QuantizedTensor& out) override;
  void quantize_both(const Tensor& x, const CastTask& first, const CastTask& second,
                     const Tensor& counters) override;
  void dequantize(const QuantizedTensor& q, const Tensor& values) override;
  void count_exponents(const Tensor& x, const Tensor& counts) override;
  bool has_column_scales() const override { return true; }
  void column_scales(const Tensor& x, const Tensor& scale, const Tensor& inverse) override;
  void scale_columns(const Tensor& x, const Tensor& factors, const Tensor& out) override;
  void gemm(Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& bias, bool accumulate,
            const Tensor& out) override;
  std::string last_gemm_kernel() const override;
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
  CpuBackend(int threads, cpu::Level level, Products products);

  struct LastGemm {
    enum class Way {
      in_place,  ///< few rows times columns that were not packed
      one_tile,  ///< few rows
      stripes,
      matrix_unit
    };
    DType dtype;  ///< in which the operands were packed
    Way way;
    bool from_blocks;
  };

  /// Of queries, keys and values of `dtype`.
  const cpu::AttentionKernels& attention_kernels(DType dtype) const;
  /// One step of a tensor that is not all f32.
  void step_stored(const cpu::StoredStep& stored, const AdamWTensor& tensor);

  Threads threads_;
  cpu::FewRowsProducts few_rows_products_;
  cpu::Level level_;
  const cpu::Kernels& kernels_;
  const cpu::FewRowsKernels* few_rows_;  ///< null: columns are packed for all products
  Products products_ = Products::exact;
  const cpu::MatrixUnit* unit_ = nullptr;  ///< null: the level's kernels multiply
  std::optional<LastGemm> last_gemm_;
};

}  // namespace quaver
