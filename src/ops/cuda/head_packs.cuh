/// transform_heads where heads lie on packs: everything stays in registers. A lane takes a pack of a head's first half and
/// the matching one of its second half: the pairs that a rotation turns.
#pragma once

#include "ops/cuda/matrix.cuh"
#include "ops/cuda/reduce.cuh"
#include "quaver/backend.h"

namespace quaver::cuda {

/// A HeadTransform for device code.
struct Heads {
  std::int64_t rows, heads;
  int head_dim, pairs;
  QkNorm norm;
  float epsilon;
  const float *gain, *cosine, *sine;
  const std::int32_t* positions;
};

/// Turns pairs (a, b); `direction` -1 turns back.
__device__ inline void turn(float& a, float& b, float cosine, float sine, float direction) {
  const float x = a, y = b, s = direction * sine;
  a = x * cosine - y * s;
  b = y * cosine + x * s;
}

/// The gradient of a rotation element by element, for the tile kernel, which casts: pairs are turned back; heads from `heads.heads`
/// on stay as they are. Both halves of a pair read both, from the caches.
template <typename T>
struct TurnedBack {
  Heads heads;
  Matrix<T> in;
  template <int N>
  struct Operands {
    Pack<T, N> own, other;  // other: of the pair; what is not turned has none, and reads itself again
    std::int32_t position;
  };
  template <int N>
  __device__ Operands<N> read(int m, int n) const {
    const int d = of_head(n);
    const int other = !turns(n, d) ? n : d >= heads.pairs ? n - heads.pairs : n + heads.pairs;
    return {in.template near_pack<N>(m, n), in.template near_pack<N>(m, other),
            heads.pairs ? heads.positions[m] : 0};
  }
  template <int N>
  __device__ void operator()(int, int n, const Operands<N>& read, float (&result)[1][N]) const {
    widen(read.own, result[0]);
    const int d = of_head(n);
    if (!turns(n, d)) return;
    const bool second = d >= heads.pairs;
    float other[N], c[N], s[N];
    widen(read.other, other);
    const int angle = second ? d - heads.pairs : d;
    widen(Matrix<const float>{heads.cosine, heads.pairs}.template near_pack<N>(read.position, angle), c);
    widen(Matrix<const float>{heads.sine, heads.pairs}.template near_pack<N>(read.position, angle), s);
#pragma unroll
    for (int i = 0; i < N; ++i)  // what `turn` makes of it
      result[0][i] = result[0][i] * c[i] + other[i] * (second ? -s[i] : s[i]);
  }

 private:
  __device__ int of_head(int n) const {
    return n % heads.head_dim;
  }
  __device__ bool turns(int n, int d) const {
    return n < heads.heads * heads.head_dim && d < 2 * heads.pairs;
  }
};

/// The rotation alone: a thread takes a pack of pairs, or a pack that is not rotated. One block per row.
template <typename T>
__global__ void rotate_packs(Heads heads, float direction, Matrix<T> in, Matrix<T> out) {
  const std::int64_t m = blockIdx.x;
  const int pairs = heads.pairs, half = pairs / kPack, chunks = heads.head_dim / kPack - half;
  const std::int64_t angles = pairs ? static_cast<std::int64_t>(heads.positions[m]) * pairs : 0;
  for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(heads.heads) * chunks;
       i += static_cast<int>(blockDim.x)) {
    const int head = i / chunks, chunk = i % chunks;
    const std::int64_t n = static_cast<std::int64_t>(head) * heads.head_dim + chunk * kPack;
    float a[kPack];
    if (chunk >= half) {
      in.load(m, n + pairs, a);
      out.store(m, n + pairs, a);
      continue;
    }
    float b[kPack], c[kPack], s[kPack];
    in.load(m, n, a);
    in.load(m, n + pairs, b);
    Matrix<const float>{heads.cosine}.load(0, angles + chunk * kPack, c);
    Matrix<const float>{heads.sine}.load(0, angles + chunk * kPack, s);
#pragma unroll
    for (int j = 0; j < kPack; ++j) turn(a[j], b[j], c[j], s[j], direction);
    out.store(m, n, a);
    out.store(m, n + pairs, b);
  }
}

constexpr int kHeadThreads = 128;

/// Which packs a lane takes: the group of `lanes` lanes has a head, the lane its packs number `chunk` of both halves.
struct HeadLane {
  int lanes, chunk, half;  ///< half: elements of half a head

  __device__ HeadLane(const Heads& heads, std::int64_t lanes_)
      : lanes(static_cast<int>(lanes_)),
        chunk(static_cast<int>(threadIdx.x) % lanes),
        half(heads.head_dim / 2) {}
  __device__ bool has_packs() const { return chunk * kPack < half; }
  __device__ int groups() const { return kHeadThreads / lanes; }  ///< of a block
  __device__ int group() const { return static_cast<int>(threadIdx.x) / lanes; }
};

/// A lane's elements of one head: a[i] and b[i] are a pair. All functions but load and store are called by whole warps.
struct HeadPacks {
  float a[kPack] = {}, b[kPack] = {};

  template <typename T>
  __device__ void load(const Matrix<T>& from, std::int64_t m, std::int64_t n, int half) {
    from.load(m, n, a);
    from.load(m, n + half, b);
  }
  template <typename T>
  __device__ void store(const Matrix<T>& to, std::int64_t m, std::int64_t n, int half) const {
    to.store(m, n, a);
    to.store(m, n + half, b);
  }
  template <typename F>
  __device__ void for_elements(const F& f) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) f(a[i], i, false);
#pragma unroll
    for (int i = 0; i < kPack; ++i) f(b[i], i, true);
  }
  __device__ float at(int i, bool second) const {
    return second ? b[i] : a[i];
  }

  /// By the angles of row m's position.
  __device__ void rotate(const Heads& heads, const HeadLane& lane, std::int64_t m, float direction) {
    if (heads.pairs == 0 || !lane.has_packs()) return;
    const std::int64_t angles =
        static_cast<std::int64_t>(heads.positions[m]) * heads.pairs + lane.chunk * kPack;
    float c[kPack], s[kPack];
    Matrix<const float>{heads.cosine}.load(0, angles, c);
    Matrix<const float>{heads.sine}.load(0, angles, s);
#pragma unroll
    for (int i = 0; i < kPack; ++i) turn(a[i], b[i], c[i], s[i], direction);
  }
  __device__ float rstd(const Heads& heads, const HeadLane& lane) {
    float squares = 0;
    for_elements([&](float x, int, bool) { squares = fmaf(x, x, squares); });
    squares = group_reduce(squares, lane.lanes, Add{});
    return 1.0f / sqrtf(squares / static_cast<float>(heads.head_dim) + heads.epsilon);
  }
  __device__ void normalise(const Heads& heads, const HeadLane& lane, const HeadPacks& gain) {
    const float factor = rstd(heads, lane);
    for_elements([&](float& x, int i, bool second) { x = x * factor * gain.at(i, second); });
  }
  /// These are the gradient of `normalise` at `input`: they become the input's; dgain += gradient * xhat.
  __device__ void normalise_backward(const Heads& heads, const HeadLane& lane, const HeadPacks& gain,
                                     HeadPacks& input, HeadPacks& dgain) {
    const float factor = input.rstd(heads, lane);
    float product = 0;
    for_elements([&](float& d, int i, bool second) {
      product += d * gain.at(i, second) * input.at(i, second) * factor;
    });
    const float mean_product = group_reduce(product, lane.lanes, Add{}) / static_cast<float>(heads.head_dim);
    dgain.for_elements(
        [&](float& sum, int i, bool second) { sum += at(i, second) * (input.at(i, second) * factor); });
    for_elements([&](float& d, int i, bool second) {
      d = factor * (d * gain.at(i, second) - mean_product * (input.at(i, second) * factor));
    });
  }
};

__device__ inline HeadPacks gain_of(const Heads& heads, const HeadLane& lane) {
  HeadPacks gain;
  if (lane.has_packs()) gain.load(Matrix<const float>{heads.gain}, 0, lane.chunk * kPack, lane.half);
  return gain;
}

/// Norm and rotation; a group of lanes per row and head.
template <typename T>
__global__ void __launch_bounds__(kHeadThreads)
    transform_packs(Heads heads, std::int64_t lanes, Matrix<T> in, Matrix<T> out) {
  const HeadLane lane(heads, lanes);
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * lane.groups() + lane.group();
  const bool inside = index < heads.rows * heads.heads && lane.has_packs();  // the others help to reduce
  const std::int64_t m = inside ? quotient(index, heads.heads) : 0;
  const std::int64_t n = (index - m * heads.heads) * heads.head_dim + lane.chunk * kPack;
  HeadPacks x;
  if (inside) x.load(in, m, n, lane.half);
  const HeadPacks gain = gain_of(heads, lane);
  if (heads.norm == QkNorm::pre_rope) x.normalise(heads, lane, gain);
  x.rotate(heads, lane, m, 1);
  if (heads.norm == QkNorm::post_rope) x.normalise(heads, lane, gain);
  if (inside) x.store(out, m, n, lane.half);
}

/// Groups of lanes take rows and heads in turn. Every block leaves the sum of its gains' gradients in its row of partials.
template <typename T>
__global__ void __launch_bounds__(kHeadThreads, 5)
    transform_packs_backward(Heads heads, std::int64_t lanes, Matrix<T> dout, Matrix<T> x, Matrix<T> dx,
                             float* partials) {
  const HeadLane lane(heads, lanes);
  HeadPacks dgain;
  const std::int64_t items = heads.rows * heads.heads;
  const std::int64_t at_once = static_cast<std::int64_t>(gridDim.x) * lane.groups();
  for (std::int64_t first = 0; first < items; first += at_once) {
    const std::int64_t index = first + static_cast<std::int64_t>(blockIdx.x) * lane.groups() + lane.group();
    const bool inside = index < items && lane.has_packs();
    const std::int64_t m = inside ? quotient(index, heads.heads) : 0;
    const std::int64_t n = (index - m * heads.heads) * heads.head_dim + lane.chunk * kPack;
    HeadPacks gradient, input;
    if (inside) {
      gradient.load(dout, m, n, lane.half);
      input.load(x, m, n, lane.half);
    }
    const HeadPacks gain = gain_of(heads, lane);
    if (heads.norm == QkNorm::post_rope) {
      input.rotate(heads, lane, m, 1);
      gradient.normalise_backward(heads, lane, gain, input, dgain);
    }
    gradient.rotate(heads, lane, m, -1);
    if (heads.norm == QkNorm::pre_rope) gradient.normalise_backward(heads, lane, gain, input, dgain);
    if (inside) gradient.store(dx, m, n, lane.half);
  }
  dgain.for_elements([&](float& sum, int, bool) {
    for (int distance = lane.lanes; distance < 32; distance *= 2)
      sum += __shfl_xor_sync(kAllLanes, sum, distance);
  });
  auto* const shared = static_cast<float*>(dynamic_shared_memory());
  const int thread = static_cast<int>(threadIdx.x), size = heads.head_dim;
  if (thread % 32 < lane.lanes && lane.has_packs())
    dgain.store(Matrix<float>{shared}, 0, thread / 32 * size + lane.chunk * kPack, lane.half);
  __syncthreads();
  for (int d = thread; d < size; d += kHeadThreads) {
    float total = 0;
    for (int warp = 0; warp < kHeadThreads / 32; ++warp) total += shared[warp * size + d];
    partials[static_cast<std::int64_t>(blockIdx.x) * size + d] = total;
  }
}

}  // namespace quaver::cuda
