#include <algorithm>

#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/device_backend.h"
#include "ops/cuda/head_packs.cuh"
#include "ops/cuda/produce.cuh"

namespace quaver::cuda {

template <typename T>
constexpr int kBlocksAtOnce<1, TurnedBack<T>> = 4;

namespace {

constexpr int kWarps = 4;

Heads heads_of(const HeadTransform& transform, const Tensor& positions, std::int64_t rows) {
  Heads heads{rows,    transform.heads, static_cast<int>(transform.head_dim),
              0,       transform.norm,  transform.epsilon,
              nullptr, nullptr,         nullptr,
              nullptr};
  if (transform.norm != QkNorm::none) heads.gain = transform.gain.data<float>();
  if (!transform.cosine) return heads;
  heads.pairs = static_cast<int>(transform.cosine.cols());
  heads.cosine = transform.cosine.data<float>();
  heads.sine = transform.sine.data<float>();
  heads.positions = positions.data<std::int32_t>();
  return heads;
}

/// One head of one row, in shared memory; all functions are called by all lanes of a warp.
struct Head {
  float* x;
  int size, lane;

  template <typename T>
  __device__ void load(const Matrix<T>& from, std::int64_t m, std::int64_t head) const {
    for (int d = lane; d < size; d += 32) x[d] = from(m, head * size + d);
    __syncwarp();
  }
  template <typename T>
  __device__ void store(const Matrix<T>& to, std::int64_t m, std::int64_t head) const {
    for (int d = lane; d < size; d += 32) *to.address(m, head * size + d) = round_as<T>(x[d]);
    __syncwarp();
  }

  /// Turns the pairs (j, j + pairs) by the angle of row m's position; `direction` -1 turns back.
  __device__ void rotate(const Heads& heads, std::int64_t m, float direction) const {
    if (heads.pairs == 0) return;
    const std::int64_t angles = static_cast<std::int64_t>(heads.positions[m]) * heads.pairs;
    for (int j = lane; j < heads.pairs; j += 32) {
      const float c = heads.cosine[angles + j], s = direction * heads.sine[angles + j];
      const float a = x[j], b = x[j + heads.pairs];
      x[j] = a * c - b * s;
      x[j + heads.pairs] = b * c + a * s;
    }
    __syncwarp();
  }

  __device__ float rstd(float epsilon) const {
    float squares = 0;
    for (int d = lane; d < size; d += 32) squares += x[d] * x[d];
    return 1.0f / sqrtf(warp_reduce(squares, Add{}) / static_cast<float>(size) + epsilon);
  }

  __device__ void normalise(const Heads& heads) const {
    const float factor = rstd(heads.epsilon);
    for (int d = lane; d < size; d += 32) x[d] = x[d] * factor * heads.gain[d];
    __syncwarp();
  }

  /// This head holds the gradient of `normalise` at `input`: it becomes the input's; dgain += gradient *
  /// xhat.
  __device__ void normalise_backward(const Heads& heads, const Head& input, float* dgain) const {
    const float factor = input.rstd(heads.epsilon);
    float product = 0;
    for (int d = lane; d < size; d += 32) product += x[d] * heads.gain[d] * input.x[d] * factor;
    const float mean_product = warp_reduce(product, Add{}) / static_cast<float>(size);
    for (int d = lane; d < size; d += 32) {
      const float xhat = input.x[d] * factor;
      dgain[d] += x[d] * xhat;
      x[d] = factor * (x[d] * heads.gain[d] - mean_product * xhat);
    }
    __syncwarp();
  }
};

/// One warp per row and head.
template <typename T>
__global__ void transform(Heads heads, Matrix<T> in, Matrix<T> out) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= heads.rows * heads.heads) return;
  const std::int64_t m = index / heads.heads, number = index % heads.heads;
  const Head head{static_cast<float*>(dynamic_shared_memory()) + warp * heads.head_dim, heads.head_dim,
                  static_cast<int>(threadIdx.x) % 32};
  head.load(in, m, number);
  if (heads.norm == QkNorm::pre_rope) head.normalise(heads);
  head.rotate(heads, m, 1);
  if (heads.norm == QkNorm::post_rope) head.normalise(heads);
  head.store(out, m, number);
}

/// Every warp takes `share` pairs of row and head, and leaves the sum of their gain's gradients in its row of
/// partials.
template <typename T>
__global__ void transform_backward(Heads heads, std::int64_t share, Matrix<T> dout, Matrix<T> x, Matrix<T> dx,
                                   float* partials) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  float* const memory = static_cast<float*>(dynamic_shared_memory()) + 3 * warp * heads.head_dim;
  const Head gradient{memory, heads.head_dim, lane}, input{memory + heads.head_dim, heads.head_dim, lane};
  float* const dgain = memory + 2 * heads.head_dim;  // every lane uses its own elements alone
  for (int d = lane; d < heads.head_dim; d += 32) dgain[d] = 0;

  const std::int64_t number = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  const std::int64_t end = min(heads.rows * heads.heads, (number + 1) * share);
  for (std::int64_t index = number * share; index < end; ++index) {
    const std::int64_t m = index / heads.heads, head = index % heads.heads;
    gradient.load(dout, m, head);
    if (heads.norm != QkNorm::none) input.load(x, m, head);
    if (heads.norm == QkNorm::post_rope) {
      input.rotate(heads, m, 1);
      gradient.normalise_backward(heads, input, dgain);
    }
    gradient.rotate(heads, m, -1);
    if (heads.norm == QkNorm::pre_rope) gradient.normalise_backward(heads, input, dgain);
    gradient.store(dx, m, head);
  }
  if (!partials) return;
  for (int d = lane; d < heads.head_dim; d += 32) partials[number * heads.head_dim + d] = dgain[d];
}

bool turns_packs(const Heads& heads) {
  return heads.norm == QkNorm::none && heads.pairs % kPack == 0 && heads.head_dim % kPack == 0 &&
         on_pack(heads.cosine) && on_pack(heads.sine);
}

/// Launches rotate_packs if there is no norm and everything lies on packs.
bool launch_rotation(const char* name, const Heads& heads, float direction, const Tensor& in,
                     const Tensor& out, Stream stream) {
  if (!turns_packs(heads) || !all_pack({in, out})) return false;
  constexpr std::int64_t kMostThreads = 256;
  const std::int64_t packs_of_row = heads.heads * (heads.head_dim - heads.pairs) / kPack;
  with_real(in.dtype(), [&]<typename T>(T) {
    launch(name, rotate_packs<T>, {heads.rows, std::min(kMostThreads, blocks_for(packs_of_row, 32) * 32)},
           stream, heads, direction, matrix_of<T>(in), matrix_of<T>(out));
  });
  return true;
}

/// Whether transform_packs can be launched: a norm, whole heads or none rotated, everything on packs.
bool fits_packs(const Heads& heads, std::initializer_list<Tensor> tensors) {
  constexpr int kMostLanes = 32;
  return heads.norm != QkNorm::none && heads.head_dim % (2 * kPack) == 0 &&
         heads.head_dim / (2 * kPack) <= kMostLanes &&
         (heads.pairs == 0 || heads.pairs == heads.head_dim / 2) && on_pack(heads.gain) &&
         on_pack(heads.cosine) && on_pack(heads.sine) && all_pack(tensors);
}
std::int64_t lanes_of(const Heads& heads) {
  return lanes_for(heads.head_dim / (2 * kPack));
}

constexpr std::int64_t kMostWarps = 8192;
/// Of transform_packs_backward: 5 on each of an H100's 132 multiprocessors, all at once.
constexpr std::int64_t kMostBlocks = 660;

std::int64_t share_of(std::int64_t pairs) {
  const std::int64_t even = blocks_for(pairs, kMostWarps);
  return even < 1 ? 1 : even;
}

constexpr const char* kBackward = "transform_heads_backward";

void backward(const Heads& heads, const Tensor& dout, const Tensor& x, const Tensor& dx, const Tensor& dgain,
              Backend& backend, Stream stream) {
  if (launch_rotation(kBackward, heads, -1, dout, dx, stream)) return;
  const std::int64_t pairs = heads.rows * heads.heads;
  if (pairs == 0) return;
  const std::size_t head_bytes = heads.head_dim * sizeof(float);
  const auto add_partials = [&](const Tensor& partials) {
    add_partial_sums<1>(kBackward, partials, partials.rows(), heads.head_dim, {dgain.data<float>()}, stream);
  };
  with_real(dout.dtype(), [&]<typename T>(T) {
    if (fits_packs(heads, {dout, x, dx})) {
      const std::int64_t lanes = lanes_of(heads), at_once = kHeadThreads / lanes;
      const std::int64_t blocks = std::min(kMostBlocks, blocks_for(pairs, 2 * at_once));
      const Tensor partials = backend.allocate(DType::f32, {blocks, heads.head_dim});
      launch(kBackward, transform_packs_backward<T>, {blocks, kHeadThreads, kHeadThreads / 32 * head_bytes},
             stream, heads, lanes, matrix_of<T>(dout), matrix_of<T>(x), matrix_of<T>(dx),
             partials.data<float>());
      return add_partials(partials);
    }
    const std::int64_t share = share_of(pairs), blocks = blocks_for(pairs, share * kWarps);
    const bool has_norm = heads.norm != QkNorm::none;
    const Tensor partials =
        has_norm ? backend.allocate(DType::f32, {blocks * kWarps, heads.head_dim}) : Tensor();
    launch(kBackward, transform_backward<T>, {blocks, 32 * kWarps, 3 * kWarps * head_bytes}, stream, heads,
           share, matrix_of<T>(dout), matrix_of<T>(has_norm ? x : Tensor()), matrix_of<T>(dx),
           has_norm ? partials.data<float>() : nullptr);
    if (has_norm) add_partials(partials);
  });
}

}  // namespace

void DeviceBackend::transform_heads(const HeadTransform& transform_, const Tensor& x, const Tensor& positions,
                                    const Tensor& out) {
  check_transform_heads(transform_, x, positions, out);
  const Heads heads = heads_of(transform_, positions, x.rows());
  if (launch_rotation("transform_heads", heads, 1, x, out, stream())) return;
  const std::size_t shared = kWarps * heads.head_dim * sizeof(float);
  with_real(x.dtype(), [&]<typename T>(T) {
    if (fits_packs(heads, {x, out})) {
      const std::int64_t lanes = lanes_of(heads);
      return launch("transform_heads", transform_packs<T>,
                    {blocks_for(heads.rows * heads.heads, kHeadThreads / lanes), kHeadThreads}, stream(),
                    heads, lanes, matrix_of<T>(x), matrix_of<T>(out));
    }
    launch("transform_heads", transform<T>,
           {blocks_for(heads.rows * heads.heads, kWarps), 32 * kWarps, shared}, stream(), heads,
           matrix_of<T>(x), matrix_of<T>(out));
  });
}

void DeviceBackend::transform_heads_backward(const HeadTransform& transform_, const Tensor& dout,
                                             const Tensor& x, const Tensor& positions, const Output& dx,
                                             const Tensor& dgain) {
  check_transform_heads_backward(transform_, dout, x, positions, dx, dgain);
  const Heads heads = heads_of(transform_, positions, dout.rows());
  if (heads.norm == QkNorm::none && (dx.quantized.defined() || transform_.untouched > 0)) {
    return with_real(dout.dtype(), [&]<typename T>(T) {
      produce<T, 1>(kBackward, TurnedBack<T>{heads, matrix_of<T>(dout)}, {dx}, dout.rows(), dout.cols(),
                    turns_packs(heads) && packs(dout), stream());
    });
  }
  const Tensor values = dx.values ? dx.values : allocate(dout.dtype(), dout.shape());
  backward(heads, dout, x, values, dgain, *this, stream());
  if (dx.quantized.defined()) cast(values, {{}, dx.quantized, dx.quantizer});
}

}  // namespace quaver::cuda
