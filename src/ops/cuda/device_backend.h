/// The operations of backend.h as kernels on one stream. One family per file; ops/cuda/device/ holds what
/// only a real device has (memory, cuBLASLt, the entry), behind the two interfaces here, so that everything
/// else also runs in the launch emulation.
///
/// Nothing here waits for the device but copy_to_host. Inside run_repeated, operations are listed by a WorkQueue
/// (work_queue.h), so everything that reaches the device goes through one. Sums over rows are cut by shape alone and combined in
/// a fixed order: no floating-point atomics.
#pragma once

#include <memory>
#include <optional>

#include "ops/arena.h"
#include "ops/contracts.h"
#include "ops/cuda/attention_library.h"
#include "ops/cuda/stream.h"
#include "ops/cuda/work_queue.h"
#include "quaver/backend.h"

namespace quaver::cuda {

/// What a kernel that fills a multiprocessor may count on.
struct ChipSize {
  int multiprocessors = 0;
  std::size_t shared_bytes = 0;  ///< of a block's dynamic shared memory, at most
};

/// Memory, copies and the stream of one device. Copies run in the stream's order.
class DeviceRuntime {
 public:
  virtual ~DeviceRuntime() = default;
  virtual std::string describe() const = 0;
  virtual DeviceStream stream() const = 0;
  virtual MemorySource memory() = 0;
  /// Memory of the host that kernels reach under the same addresses.
  virtual MemorySource host_memory() = 0;
  virtual bool needs_transposed_fp8() const = 0;
  virtual ChipSize chip_size() const = 0;
  /// The chip's own products of whole warpgroups (sm_90a), and code for them in this build.
  virtual bool has_warpgroup_products() const = 0;
  /// The source may be reused as soon as this returns.
  virtual void copy_from_host(const void* source, void* destination, std::size_t bytes) = 0;
  /// Waits for the copy, and so for everything before it.
  virtual void copy_to_host(const void* source, void* destination, std::size_t bytes) = 0;
  /// `rows` rows of `width` bytes, device to device; pitches in bytes.
  virtual void copy_rows(const void* source, std::size_t source_pitch, void* destination,
                         std::size_t destination_pitch, std::size_t width, std::size_t rows) = 0;
  /// Records what the list starts, without running it.
  virtual Recorded record(const WorkList& list) = 0;
};

constexpr std::int64_t kBlock = 128, kMxBlock = 32;

/// Which elements of an FP8 factor share a scale, and how the scales lie.
enum class FactorScales : std::int32_t {
  tensor,   ///< one, f32
  rows,     ///< f32, one for kBlock elements along k: that of (i, k) is [k / kBlock * scale_stride + i]
  squares,  ///< f32, one for kBlock x kBlock elements: [i / kBlock * scale_stride + k / kBlock]
  mx,  ///< e8m0, one for kMxBlock elements along k, in tiles (ops/scale_tiles.h); scale_stride bytes for 128 of i
};

/// One operand of a product: element (i, k) is data[i * stride + k], or data[k * stride + i] where `swapped`.
struct Factor {
  const void* data = nullptr;
  std::int64_t stride = 0;
  bool swapped = false;
  DType dtype = DType::f32;
  const void* scale_inv = nullptr;  ///< of FP8
  FactorScales scales = FactorScales::tensor;
  std::int64_t scale_stride = 0;
};

/// out[m, n] (+)= the sum over k of left(m, k) right(n, k), times both scale_inv, or each element times its block's.
struct Product {
  GemmSize size;
  Factor left, right;
  bool fast_accumulation = false, accumulate = false;
  void* out = nullptr;
  std::int64_t out_stride = 0;
  DType out_dtype = DType::f32;
};

/// A library of matrix products.
class MatrixLibrary {
 public:
  virtual ~MatrixLibrary() = default;
  /// Why it multiplies no factors in blocks with such scales on this machine; empty: it does, where `suits_library` has nothing against
  /// a product.
  virtual std::string why_no_blocks(FactorScales scales) const = 0;
  /// Whether `multiply` would queue the product and do nothing else; nothing: it would first run candidates.
  virtual std::optional<bool> can_multiply(const Product& product) const = 0;
  /// Queues the product; false, with nothing queued, if the library cannot compute it.
  virtual bool multiply(const Product& product, Backend& backend) = 0;
  /// The algorithm of a product that was multiplied, for reports.
  virtual std::string describe(const Product& product) const = 0;
};

class DeviceBackend final : public Backend {
 public:
  /// Without a library, products run on a plain kernel of our own; without one of attention, all of it on our own kernels.
  DeviceBackend(std::unique_ptr<DeviceRuntime> runtime, std::unique_ptr<MatrixLibrary> library,
                std::unique_ptr<AttentionLibrary> attention = nullptr);

  std::string_view name() const override { return "cuda"; }
  Device device() const override { return Device::cuda; }
  std::string describe() const override;
  bool needs_transposed_fp8() const override { return runtime_->needs_transposed_fp8(); }
  bool reads_swizzled_scales() const override { return true; }

  void run_repeated(const std::function<void()>& work) override { queue_.run(work); }
  RepeatUse repeat_use() const override { return queue_.use(); }
  Tensor allocate(DType dtype, Shape shape) override;
  void copy_from_host(const void* source, const Tensor& destination) override;
  void copy_to_host(const Tensor& source, void* destination) override;
  MemoryUse memory_use() const override;
  void copy(const Tensor& source, const Tensor& destination) override;
  void fill(const Tensor& destination, double value) override;
  void fill_normal(const Tensor& destination, float mean, float std, std::uint64_t seed,
                   std::uint64_t stream) override;
  void convert(const Tensor& source, const Tensor& destination) override;
  void cast(const Tensor& x, const Output& output) override;
  /// Current scaling, and the casts of the recipes `block` and `mxfp8` where products in such blocks are there.
  std::string why_no_cast(const OperandCast& cast) const override;
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
  void refuse_non_finite_casts(const Tensor& before, const Tensor& after, const Tensor& norm) override;
  void refuse_non_finite(const Tensor& values, const Tensor& norm) override;
  void gather(std::span<const Tensor> sources, const Tensor& destination) override;
  void update_scales(std::span<const ScaleUpdate> updates) override;

 private:
  Stream stream() { return &queue_; }
  void copy_rows(const void* source, std::size_t source_pitch, void* destination,
                 std::size_t destination_pitch, std::size_t width, std::size_t rows);
  Tensor pad(Factor& factor, Shape used, Shape whole);
  bool multiply_in_library(const Product& product);
  Tensor transposed(const Tensor& bytes);
  Factor factor(const GemmOperand& operand, Gemm kind, bool swapped, Tensor& kept);
  bool multiply_padded(const Product& product, const Tensor& bias, bool accumulate);
  /// Throws if a kernel met an index outside its table since the last call.
  void report_faults();
  /// Queues the call in the attention library; false, with nothing queued, where there is none or it does not take it.
  bool attend_in_library(const AttentionCall& call, const AttentionGradients* gradients);

  std::unique_ptr<DeviceRuntime> runtime_;
  std::unique_ptr<MatrixLibrary> library_;
  std::unique_ptr<AttentionLibrary> attention_library_;
  struct LastGemm {
    Product product;  ///< as it was multiplied
    bool in_library, by_fp32_result;
  };
  std::optional<LastGemm> last_gemm_;
  WorkQueue queue_;
  std::shared_ptr<Arena> arena_;  // storages keep it alive; declared after the runtime that gives it memory
  Tensor faults_;                 // in the host's memory: what kernels noted is read without a copy
};

}  // namespace quaver::cuda
