/// Every operation of Quaver, declared once: its mathematics, shapes and types. A backend implements all of
/// them.
///
/// Conventions
/// - Shapes: M tokens (rows of a micro-batch), K and N features, B sequences, T positions, H query heads, G
///   key/value heads, D head size. Matrices are row-major and may have a row stride; a [M, H*D] matrix holds
///   head h in columns [h*D, (h+1)*D).
/// - "real" means bf16 or f32. All real tensors of one call have one type unless said otherwise. Arithmetic
///   is FP32; a result is rounded once when it is stored.
/// - Outputs come last. An absent optional tensor is a default-constructed Tensor. Outputs never alias inputs
///   unless said.
/// - An `Output` says whether a producer writes high precision, FP8, or both (scaling.h); FP8 is cast from
///   the FP32 result *after* rounding it to the context's real type, so that fused and separate casts give
///   the same bytes.
/// - A method whose name ends in `_backward` computes the gradients of its forward. "+=" accumulates into
///   FP32 gradients.
/// - Shapes and types are checked; a mismatch is an Error of kind usage that names the operation and both
///   shapes.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quaver/model_config.h"
#include "quaver/products.h"
#include "quaver/scaling.h"
#include "quaver/tensor.h"

namespace quaver {

/// A GEMM operand: a real matrix, or a quantised one with its scales.
struct GemmOperand {
  GemmOperand() = default;
  GemmOperand(Tensor real) : values(std::move(real)) {}  // NOLINT(google-explicit-constructor)
  GemmOperand(QuantizedTensor q)                         // NOLINT(google-explicit-constructor)
      : values(std::move(q.bytes)),
        transposed(std::move(q.transposed)),
        scale_inv(std::move(q.scale_inv)),
        blocks(std::move(q.blocks)),
        e2m1_cols(q.e2m1_cols) {}
  /// `values` may be absent where the product reads `transposed` (QuantizedTensor).
  Tensor values, transposed, scale_inv;
  BlockScales blocks;
  std::int64_t e2m1_cols = 0;
  DType dtype() const {
    return e2m1_cols > 0 ? DType::e2m1 : values.defined() ? values.dtype() : transposed.dtype();
  }
  std::int64_t rows() const { return values.defined() ? values.rows() : transposed.cols(); }
  std::int64_t cols() const {
    return e2m1_cols > 0 ? e2m1_cols : values.defined() ? values.cols() : transposed.rows();
  }
};

/// One cast of `Backend::quantize_both`.
struct CastTask {
  const OperandCast& cast;
  const CastNoise& noise;
  const QuantizedTensor& out;
};

/// What a norm reads: x, or a sum that it forms and stores in the same pass: a residual stream and what a branch adds.
struct NormInput {
  NormInput(Tensor values) : x(std::move(values)) {}  // NOLINT(google-explicit-constructor)
  NormInput(Tensor values, Tensor added, Tensor result)
      : x(std::move(values)), addend(std::move(added)), sum(std::move(result)) {}
  Tensor x;
  Tensor addend;  ///< like x, or absent
  Tensor sum;     ///< like x, present with addend: receives what `add` would give; may alias x or addend
  /// The matrix that is normalised; where there is a sum, from the norm on.
  const Tensor& normed() const { return addend ? sum : x; }
};

/// What `transform_heads` does to every head of q or k.
struct HeadTransform {
  std::int64_t heads = 0, head_dim = 0;
  QkNorm norm = QkNorm::none;
  float epsilon = 1e-6f;
  Tensor gain;          ///< f32[D]; present unless norm is none
  Tensor cosine, sine;  ///< f32[positions, R/2]: rotary tables, R <= D even; absent: no rotation
  /// Heads behind those, of which backward passes the gradient on as it is: v beside q and k. 0 in forward, and with a norm.
  std::int64_t untouched = 0;
};

/// Sizes of one attention call. Query i of a sequence stands at key position key_len - query_len + i.
struct AttentionShape {
  std::int64_t batch = 0, query_len = 0, key_len = 0, heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 0;  ///< of q k^T; usually 1 / sqrt(head_dim)
};

struct AdamWStep {
  float lr = 0, beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f, weight_decay = 0;
  std::int64_t step = 1;   ///< 1 for the first step: bias corrections 1 - beta^step
  std::uint64_t seed = 0;  ///< of the random numbers that round what is not f32
};

/// Elements, in row-major order, that share one scale of moments in FP8; the last block may be shorter.
inline constexpr std::int64_t kMomentBlock = 128;

/// A parameter in an AdamW step; all but the scales contiguous and of one shape, the gradient f32. The value is f32 or bf16.
/// The moments are of one type: f32; bf16; or e4m3, and then v holds square roots and both have scales
/// (docs/numerics.md, "Optimizer state in fewer bits").
struct AdamWTensor {
  Tensor gradient, value, m, v;
  bool decays = true;        ///< false: no weight decay
  WeightCopies copies = {};  ///< of the new value; a matrix if there are any
  /// f32[ceil(elements / kMomentBlock)]; absent unless the moments are e4m3
  Tensor m_scales = {}, v_scales = {};
  /// Tells its random numbers from those of other parameters; a hash of its name will do.
  std::uint64_t noise_stream = 0;
};

/// Bytes of the backend's arena: handed out now, handed out at the worst moment, and held from the system.
struct MemoryUse {
  std::int64_t in_use = 0, peak = 0, reserved = 0;
};

/// What became of the sequences of operations in `run_repeated`.
struct RepeatUse {
  std::int64_t replayed = 0;  ///< handed over as one, the first time after recording included
  std::int64_t recorded = 0;  ///< recorded for that
  std::int64_t direct = 0;    ///< started operation by operation
  std::string why_direct;     ///< the last of those
};

/// All operations on one device. Modules hold a reference to one; a program names it and passes it on.
class Backend : public ScaleUpdater {
 public:
  virtual std::string_view name() const = 0;
  virtual Device device() const = 0;
  /// One line for logs: name, instruction-set level or chip, threads.
  virtual std::string describe() const = 0;
  /// Whether FP8 casts must also write the transposed bytes, because GEMMs take operands contiguous along the
  /// contraction only.
  virtual bool needs_transposed_fp8() const = 0;
  /// Whether GEMMs read e8m0 scales of 1 x n and n x 1 swizzled (BlockScales).
  virtual bool reads_swizzled_scales() const { return false; }

  /// Runs `work`, whose operations are often the same: a micro-batch's forward and backward. A device may keep
  /// them back, and hand over at once a sequence that it has met before (a CUDA graph: one launch instead of
  /// many). Results, and what `work` does on the host, are as without. Copies from or to
  /// the host inside `work` are allowed, but end the keeping back. Inside another run_repeated: plain `work`.
  virtual void run_repeated(const std::function<void()>& work) { work(); }
  /// All zero on a device that runs everything directly.
  virtual RepeatUse repeat_use() const { return {}; }

  // ---- memory ----

  /// Uninitialised memory from the backend's arena (freed blocks of the same size are reused). 64-byte
  /// aligned.
  virtual Tensor allocate(DType dtype, Shape shape) = 0;
  /// Both take contiguous tensors; `copy_to_host` waits for what computes `source`.
  virtual void copy_from_host(const void* source, const Tensor& destination) = 0;
  virtual void copy_to_host(const Tensor& source, void* destination) = 0;
  virtual MemoryUse memory_use() const = 0;

  /// Copies a matrix or tensor of the same type and shape; strides may differ.
  virtual void copy(const Tensor& source, const Tensor& destination) = 0;
  /// Copies contiguous tensors of one type and size one after the other into the contiguous `destination`: many
  /// small ones reach the host with one wait.
  virtual void gather(std::span<const Tensor> sources, const Tensor& destination) = 0;
  /// Any type but FP8; contiguous.
  virtual void fill(const Tensor& destination, double value) = 0;
  /// destination[i] = mean + std * normal(seed, stream, i) with base/random.h; f32, contiguous.
  virtual void fill_normal(const Tensor& destination, float mean, float std, std::uint64_t seed,
                           std::uint64_t stream) = 0;
  /// Converts between real types, one rounding; contiguous.
  virtual void convert(const Tensor& source, const Tensor& destination) = 0;

  // ---- FP8 ----

  /// Casts a real matrix [M,N]: output.quantized (and output.values, if wanted, a copy of x).
  virtual void cast(const Tensor& x, const Output& output) = 0;

  // ---- recipes other than delayed scaling (recipe.h) ----

  /// Why `quantize` does not make a cast, or GEMMs do not take what it makes: words that can follow a colon. Empty: they do.
  virtual std::string why_no_cast(const OperandCast& cast) const;
  /// Whether GEMMs take one quantised operand beside a bf16 one, and two of different casts.
  virtual bool mixes_operands() const { return false; }
  /// Casts a real matrix [M,N], of `out` allocated by allocate_quantized:
  ///   x' = hadamard x, if the cast has it: rows 16 i .. 16 i + 15 become D_4 D_3 D_2 D_1 S of themselves in FP32, S the
  ///        signs, D_j the sums and differences of rows 2^(j-1) apart; then times 1/4
  ///   T = rule.tensor_scale(max |x'|), scale_inv = 1 / T, or T = 1
  ///   b = rule.block_scale_inv(max over the block of |x'|, T) as stored; NaN if the type has no NaN and the block has one
  ///   m = T / b (0 if b is 0; T without blocks), code = encode(x' * m), both in FP32
  /// counters (i64[kCastCounters], may be absent) as Quantizer says, of x' and x' * m. Throws Error(usage) where
  /// `why_no_cast` has a reason.
  virtual void quantize(const Tensor& x, const OperandCast& cast, const CastNoise& noise,
                        const Tensor& counters, const QuantizedTensor& out);
  /// The same for two casts of one x, which a device may read once.
  virtual void quantize_both(const Tensor& x, const CastTask& first, const CastTask& second,
                             const Tensor& counters);
  /// values[m,n] = decode(code) * the block's scale_inv, in FP32, rounded to bf16: what a GEMM multiplies. The scale of the
  /// tensor is not applied. values: bf16 [M,N]. Throws Error(usage) where the backend does not make blocks.
  virtual void dequantize(const QuantizedTensor& q, const Tensor& values);

  /// counts[e] += elements of x (real [M,N]) whose biased FP32 exponent is e. counts: i64[kExponents].
  virtual void count_exponents(const Tensor& x, const Tensor& counts) = 0;

  // ---- scales of columns (Linear::smooth_input) ----

  /// Whether the next two operations exist; elsewhere they throw Error(usage).
  virtual bool has_column_scales() const { return false; }
  /// scale[n], inverse[n] = 1 / scale[n]: f32[N], powers of two that halve, in binades, how far the columns of x (real [M,N]) are
  /// apart, as docs/numerics.md defines under "Smoothed inputs". |x[m,n]| * inverse[n] < 2 for magnitudes up to 2^33.
  virtual void column_scales(const Tensor& x, const Tensor& scale, const Tensor& inverse);
  /// out[m,n] = x[m,n] * factors[n]. x, out: real [M,N] of one type; out may be x. factors: f32[N].
  virtual void scale_columns(const Tensor& x, const Tensor& factors, const Tensor& out);

  // ---- matrix products ----

  /// out (+)= (scale_inv_a * scale_inv_b) * product + bias. The sum of one element runs over the contraction
  /// in ascending order into one FP32 accumulator; then s = scale_inv_a * scale_inv_b, acc * s, + bias, (+
  /// old out,) each rounded to FP32, and one rounding to out's type. Real operands have no scale (s is not
  /// applied). BF16 products flush denormals: an operand or a partial sum that is an FP32 denormal counts as
  /// zero of its sign, and an odd contraction ends with a product of zeros. FP8 products are never denormal.
  /// Operands: both f32; both bf16; both FP8 with one scale each, not both e5m2; or both quantised, of casts for this GEMM without a
  /// `why_no_cast`. If `mixes_operands`, also any quantised one beside a bf16 or quantised one. Where an operand has blocks or one is
  /// real, the product is that of bf16 operands, `dequantize`d, and s is the product of
  /// the scale_inv that there are (not applied if there is none). out: real, of any type. bias: f32[N] or
  /// absent, fprop only.
  virtual void gemm(Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& bias,
                    bool accumulate, const Tensor& out) = 0;
  /// Which of its kernels computed the newest product, for reports; empty before the first.
  virtual std::string last_gemm_kernel() const = 0;
  /// sums[n] += sum_m x[m,n]: the gradient of a bias. x real [M,N], sums f32[N].
  virtual void sum_rows(const Tensor& x, const Tensor& sums) = 0;

  // ---- norms; x real [M,N], gain and bias f32[N], statistics f32[M]; below, x stands for x.normed() ----

  /// y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + epsilon). `rstd` may be absent.
  virtual void rms_norm(const NormInput& x, const Tensor& gain, float epsilon, const Output& y,
                        const Tensor& rstd) = 0;
  /// dx (+)= rstd * (dy*gain - mean(dy*gain*xhat) * xhat), xhat = x * rstd;  dgain += sum_m dy * xhat. Accumulating adds to
  /// dx.values, which must be there then; what is cast is the sum.
  virtual void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& rstd,
                                 bool accumulate_dx, const Output& dx, const Tensor& dgain) = 0;
  /// y = (x - mean) * rstd * gain + bias, rstd = 1 / sqrt(variance + epsilon), the variance biased.
  virtual void layer_norm(const NormInput& x, const Tensor& gain, const Tensor& bias, float epsilon,
                          const Output& y, const Tensor& mean, const Tensor& rstd) = 0;
  /// dx (+)= rstd * (dy*gain - mean(dy*gain*xhat) * xhat - mean(dy*gain));  dgain += sum dy*xhat;  dbias +=
  /// sum dy.
  virtual void layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& mean,
                                   const Tensor& rstd, bool accumulate_dx, const Output& dx,
                                   const Tensor& dgain, const Tensor& dbias) = 0;

  // ---- pointwise; real [M,N] ----

  /// out = a + b. out may alias either.
  virtual void add(const Tensor& a, const Tensor& b, const Tensor& out) = 0;
  /// h = act(gate) * up: silu for swiglu, gelu (tanh form) for geglu. gelu: h = gelu(up), gate absent.
  virtual void activation(Activation kind, const Tensor& gate, const Tensor& up, const Output& h) = 0;
  /// dup = dh * act(gate), dgate = dh * up * act'(gate). gelu: dup = dh * gelu'(up), dgate unused. `h`, which may be absent,
  /// receives once more what `activation` makes of these operands, for a wgrad that did not keep it: the same bits. It may
  /// lack `quantized.bytes` where needs_transposed_fp8().
  virtual void activation_backward(Activation kind, const Tensor& dh, const Tensor& gate, const Tensor& up,
                                   const Output& dgate, const Output& dup, const Output& h) = 0;
  /// The attention gate (arXiv 2505.06708, position G1): y = o * act(g). o is [M, H*D]; g is [M, H*D]
  /// (elementwise) or [M, H] (headwise: one gate for the D elements of a head).
  virtual void gate(GateActivation kind, const Tensor& o, const Tensor& g, const Output& y) = 0;
  /// do = dy * act(g);  dg = dy * o * act'(g), summed over the head when headwise. `y`: what `gate` makes of these operands,
  /// as `h` above.
  virtual void gate_backward(GateActivation kind, const Tensor& dy, const Tensor& o, const Tensor& g,
                             const Tensor& d_o, const Output& dg, const Output& y) = 0;

  // ---- attention ----

  /// q or k before attention: out = rope(norm(x)) (pre_rope) or norm(rope(x)) (post_rope), norm being an
  /// RMSNorm over each head with a gain shared by all heads; without norm, rope(x). rope turns the pairs
  /// (x[j], x[j + R/2]), j < R/2, of the first R elements by the angle of the row's position: x[j] c -
  /// x[j+R/2] s, x[j+R/2] c + x[j] s. x, out: real [M, H*D], strided. positions: i32[M], rows of the tables;
  /// absent when there are none. out may be x.
  virtual void transform_heads(const HeadTransform& transform, const Tensor& x, const Tensor& positions,
                               const Tensor& out) = 0;
  /// dx = gradient; dgain += (when there is a norm). `x` is the forward's input (needed with a norm; else may
  /// be absent). dout, dx: [M, (heads + untouched) * D].
  virtual void transform_heads_backward(const HeadTransform& transform, const Tensor& dout, const Tensor& x,
                                        const Tensor& positions, const Output& dx, const Tensor& dgain) = 0;

  /// Causal attention with grouped queries: head h reads key/value head h * G / H. Query i of a sequence sees
  /// the keys from its first_key[i] up to its own position, both inclusive. O(query_len + key_len) memory: no
  /// score matrix is stored. q, out: real [B*query_len, H*D]; k, v: real [B*key_len, G*D]; strided. lse: f32
  /// [B*query_len, H], the log of the softmax denominator, for backward; may be absent. first_key: i32
  /// [B*query_len], positions within the sequence; absent: 0.
  virtual void attention(const AttentionShape& shape, const Tensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& first_key, const Tensor& out, const Tensor& lse) = 0;
  virtual void attention_backward(const AttentionShape& shape, const Tensor& dout, const Tensor& q,
                                  const Tensor& k, const Tensor& v, const Tensor& first_key,
                                  const Tensor& out, const Tensor& lse, const Tensor& dq, const Tensor& dk,
                                  const Tensor& dv) = 0;

  // ---- embedding and loss ----

  /// out[m] = table[tokens[m]] (+ position_table[positions[m]]). tables [V,N], [P,N], both f32 or both
  /// bf16 ("cuda": f32); tokens i32[M]; out real [M,N].
  virtual void embedding(const Tensor& tokens, const Tensor& table, const Tensor& positions,
                         const Tensor& position_table, const Tensor& out) = 0;
  /// dtable[tokens[m]] += dout[m], in ascending m for every row; likewise dposition_table (both absent or
  /// present as in forward).
  virtual void embedding_backward(const Tensor& dout, const Tensor& tokens, const Tensor& positions,
                                  const Tensor& dtable, const Tensor& dposition_table) = 0;
  /// losses[m] = logsumexp(logits[m]) - logits[m, target], 0 for a target of -1. logits real [M,V], targets
  /// i32[M], losses f32[M]. dlogits, if wanted, = gradient_scale * (softmax(logits) - onehot(target)), rows
  /// of target -1 zero; dlogits.values may alias logits.
  virtual void cross_entropy(const Tensor& logits, const Tensor& targets, float gradient_scale,
                             const Tensor& losses, const Output& dlogits) = 0;

  // ---- optimizer; f32 ----

  /// result[0] = sqrt(sum of squares over all elements of all tensors), accumulated in double. f32[1].
  virtual void global_norm(std::span<const Tensor> tensors, const Tensor& result) = 0;
  /// AdamW with decoupled decay (arXiv 1711.05101), g = gradient * clip, clip = min(1, max_norm / norm[0]):
  ///   m = beta1 m + (1-beta1) g;  v = beta2 v + (1-beta2) g^2;  mhat, vhat bias-corrected
  ///   value -= lr * (mhat / (sqrt(vhat) + epsilon) + weight_decay * value)
  /// for every tensor; then its copies, bit for bit what `cast` and `convert` of the new value would write. A value or moment
  /// that is not f32 is widened, used as above, and rounded stochastically when it is stored: the neighbour farther from
  /// zero if the remainder exceeds the element's uniform number, which is that of CastNoise{step.seed,
  /// Random(noise_stream, step.step).bits(k)}, k = 0 for value, 1 for m, 2 for v. "cuda" takes f32 alone and throws
  /// Error(usage) for others.
  /// norm: f32[1] on the device. max_norm <= 0: no clipping. Nothing is written unless
  /// `is_usable_norm(norm[0], max_norm)`.
  virtual void adamw(const AdamWStep& step, const Tensor& norm, float max_norm,
                     std::span<const AdamWTensor> tensors) = 0;
  /// norm[0] <- NaN, so that no `adamw` with it writes anything, unless the columns kCastNan and kCastInfinite of
  /// `before` and of `after` have one sum. Both i64[S, kCastCounters], contiguous, of any S.
  virtual void refuse_non_finite_casts(const Tensor& before, const Tensor& after, const Tensor& norm) = 0;
  /// norm[0] <- NaN, likewise, unless all values are finite, and no operation met an index or target outside its range
  /// that copy_to_host has yet to throw. values: f32, contiguous.
  virtual void refuse_non_finite(const Tensor& values, const Tensor& norm) = 0;
};

/// Whether gradients of this norm, clipped to max_norm (<= 0: not), can be squared in FP32: a larger one would put
/// infinities into the second moment.
inline bool is_usable_norm(float norm, float max_norm) {
  constexpr float kLargest = 1e19f;
  const float clipped = max_norm > 0 && max_norm < norm ? max_norm : norm;
  return norm <= std::numeric_limits<float>::max() && clipped <= kLargest;  // false for NaN
}

/// Makes a backend by name: "reference" (plain scalar code: the specification), "cpu" (vectorised, the same
/// bits where the contract says so), "cuda". `threads` = 0 uses every processor. Threads and products are those of "cpu"; others
/// have one way each. Throws Error(usage) for an unknown name, or with the reason when the backend is not part of this build.
std::shared_ptr<Backend> make_backend(const std::string& name, int threads = 0,
                                      Products products = Products::exact);

/// The names `make_backend` knows, built in or not.
std::vector<std::string> backend_names();

/// A tensor of `dtype` (f32 or bf16) on the backend's device with these values, each rounded once.
Tensor upload(Backend& backend, std::span<const float> values, Shape shape, DType dtype = DType::f32);
Tensor upload(Backend& backend, std::span<const std::int32_t> values, Shape shape);

/// The values of a tensor of any type but i64 and u8 as floats (exact), in row-major order whatever its
/// strides.
std::vector<float> download(Backend& backend, const Tensor& tensor);

}  // namespace quaver
