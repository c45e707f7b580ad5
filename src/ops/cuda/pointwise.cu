#include <algorithm>

#include "ops/cuda/curves.cuh"
#include "ops/cuda/device_backend.h"
#include "ops/cuda/produce.cuh"

namespace quaver::cuda {
namespace {

template <typename T>
struct SumOfTwo {
  Matrix<T> a, b;
  template <int N>
  struct Operands {
    Pack<T, N> a, b;
  };
  template <int N>
  __device__ Operands<N> read(int m, int n) const {
    return {a.template near_pack<N>(m, n), b.template near_pack<N>(m, n)};
  }
  template <int N>
  __device__ void operator()(int, int, const Operands<N>& read, float (&result)[1][N]) const {
    float x[N], y[N];
    widen(read.a, x);
    widen(read.b, y);
#pragma unroll
    for (int i = 0; i < N; ++i) result[0][i] = x[i] + y[i];
  }
};

/// curve(g) u, or curve(g) where there is no u.
template <typename T>
struct Gated {
  Curve curve;
  Matrix<T> g, u;
  template <int N>
  struct Operands {
    Pack<T, N> g, u;
  };
  template <int N>
  __device__ Operands<N> read(int m, int n) const {
    return {g.template near_pack<N>(m, n), u.data ? u.template near_pack<N>(m, n) : Pack<T, N>{}};
  }
  template <int N>
  __device__ void operator()(int, int, const Operands<N>& read, float (&result)[1][N]) const {
    float x[N], y[N];
    widen(read.g, x);
    widen(read.u, y);
    ValueAndSlope at[N];
    evaluate(curve, x, at);
#pragma unroll
    for (int i = 0; i < N; ++i) result[0][i] = u.data ? at[i].value * y[i] : at[i].value;
  }
};

/// d u curve'(g), and d curve(g); with a third result, that of Gated.
template <typename T>
struct GatedBackward {
  Curve curve;
  Matrix<T> d, g, u;
  template <int N>
  struct Operands {
    Pack<T, N> d, g, u;
  };
  template <int N>
  __device__ Operands<N> read(int m, int n) const {
    return {d.template near_pack<N>(m, n), g.template near_pack<N>(m, n), u.template near_pack<N>(m, n)};
  }
  template <int kResults, int N>
  __device__ void operator()(int, int, const Operands<N>& read, float (&result)[kResults][N]) const {
    float dy[N], x[N], y[N];
    widen(read.d, dy);
    widen(read.g, x);
    widen(read.u, y);
    ValueAndSlope at[N];
    evaluate(curve, x, at);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      result[0][i] = dy[i] * y[i] * at[i].slope;
      result[1][i] = dy[i] * at[i].value;
      if constexpr (kResults == 3) result[2][i] = at[i].value * y[i];
    }
  }
};

/// d curve'(g); with a second result, that of Gated without u.
template <typename T>
struct CurveBackward {
  Curve curve;
  Matrix<T> d, g;
  template <int N>
  struct Operands {
    Pack<T, N> d, g;
  };
  template <int N>
  __device__ Operands<N> read(int m, int n) const {
    return {d.template near_pack<N>(m, n), g.template near_pack<N>(m, n)};
  }
  template <int kResults, int N>
  __device__ void operator()(int, int, const Operands<N>& read, float (&result)[kResults][N]) const {
    float dy[N], x[N];
    widen(read.d, dy);
    widen(read.g, x);
    ValueAndSlope at[N];
    evaluate(curve, x, at);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      result[0][i] = dy[i] * at[i].slope;
      if constexpr (kResults == 2) result[1][i] = at[i].value;
    }
  }
};

/// curve(g) o with one gate for `width` columns of o, a multiple of N.
template <typename T>
struct HeadGate {
  Curve curve;
  Matrix<T> g, o;
  std::int64_t width;
  template <int N>
  struct Operands {
    Pack<T, N> o;
    T g;
  };
  template <int N>
  __device__ Operands<N> read(int m, int n) const {
    return {o.template near_pack<N>(m, n),
            *g.address(m, static_cast<unsigned>(n) / static_cast<unsigned>(width))};
  }
  template <int N>
  __device__ void operator()(int, int, const Operands<N>& read, float (&result)[1][N]) const {
    widen(read.o, result[0]);
    const float gate = evaluate(curve, as_float(read.g)).value;
#pragma unroll
    for (int i = 0; i < N; ++i) result[0][i] *= gate;
  }
};

}  // namespace

template <>
inline constexpr int kBlocksAtOnce<1, HeadGate<bf16>> = 4;

namespace {

constexpr int kGateThreads = 256;

/// `lanes` lanes, a power of two, take a head of a row in packs of N. The few gradients of gates are stored, and cast, one by one.
template <int N, typename T>
__global__ void __launch_bounds__(kGateThreads)
    head_gate_backward(Curve curve, Matrix<T> dy, Matrix<T> o, Matrix<T> g, Matrix<T> d_o, Sink<T> dg,
                       std::int64_t rows, std::int64_t heads, std::int64_t width, std::int64_t lanes) {
  const int groups = kGateThreads / static_cast<int>(lanes), thread = static_cast<int>(threadIdx.x);
  const int lane = thread % static_cast<int>(lanes);
  const std::int64_t index =
      static_cast<std::int64_t>(blockIdx.x) * groups + thread / static_cast<int>(lanes);
  const bool inside = index < rows * heads;  // the others help to reduce
  const std::int64_t m = inside ? quotient(index, heads) : 0, head = inside ? index - m * heads : 0;
  const ValueAndSlope at = evaluate(curve, g(m, head));
  float sum = 0;
  for (std::int64_t n = lane * N; inside && n < width; n += lanes * N) {
    float d[N], values[N];
    dy.load(m, head * width + n, d);
    o.load(m, head * width + n, values);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sum += d[i] * values[i] * at.slope;
      d[i] *= at.value;
    }
    d_o.store(m, head * width + n, d);
  }
  sum = group_reduce(sum, static_cast<int>(lanes), Add{});
  CastTrace trace;
  if (inside && lane == 0) {
    const T rounded_sum = round_as<T>(sum);
    if (dg.values.data) *dg.values.address(m, head) = rounded_sum;
    if (dg.quantizes()) {
      const std::uint8_t byte = trace.cast(dg.cast_scale(), as_float(rounded_sum));
      if (dg.bytes.data) *dg.bytes.address(m, head) = byte;
      if (dg.transposed.data) *dg.transposed.address(head, m) = byte;
    }
  }
  if (!dg.quantizes()) return;
  record(dg, trace);
  if (blockIdx.x == 0 && threadIdx.x == 0) record_once(dg, rows * heads);
}

void gated(GateActivation kind, const Tensor& o, const Tensor& g, const Output& y, Stream stream) {
  with_real(o.dtype(), [&]<typename T>(T) {
    if (o.cols() == g.cols()) {
      return produce<T, 1>("gate", Gated<T>{curve_of(kind), matrix_of<T>(g), matrix_of<T>(o)}, {y}, o.rows(),
                           o.cols(), all_pack({o, g}), stream);
    }
    const std::int64_t width = o.cols() / g.cols();
    produce<T, 1>("gate", HeadGate<T>{curve_of(kind), matrix_of<T>(g), matrix_of<T>(o), width}, {y}, o.rows(),
                  o.cols(), packs(o) && width % kPack == 0, stream);
  });
}

/// `function` gives the results of `outputs` and, after them, of `again`, if that is wanted.
template <typename T, std::size_t kOutputs, typename F>
void produce_with(const char* name, const F& function, const std::array<Output, kOutputs>& outputs,
                  const Output& again, const Tensor& like, bool pack, Stream stream) {
  if (!is_wanted(again))
    return produce<T, kOutputs>(name, function, outputs, like.rows(), like.cols(), pack, stream);
  std::array<Output, kOutputs + 1> all;
  std::copy(outputs.begin(), outputs.end(), all.begin());
  all.back() = again;
  produce<T, kOutputs + 1>(name, function, all, like.rows(), like.cols(), pack, stream);
}

}  // namespace

void DeviceBackend::cast(const Tensor& x, const Output& output) {
  check_cast(x, output);
  with_real(x.dtype(), [&]<typename T>(T) {
    produce<T, 1>("cast", Identity<T>{matrix_of<T>(x)}, {output}, x.rows(), x.cols(), packs(x), stream());
  });
}

void DeviceBackend::add(const Tensor& a, const Tensor& b, const Tensor& out) {
  check_add(a, b, out);
  with_real(a.dtype(), [&]<typename T>(T) {
    produce<T, 1>("add", SumOfTwo<T>{matrix_of<T>(a), matrix_of<T>(b)}, {Output{out, {}, {}}}, a.rows(),
                  a.cols(), all_pack({a, b}), stream());
  });
}

void DeviceBackend::activation(Activation kind, const Tensor& gate, const Tensor& up, const Output& h) {
  check_activation(kind, gate, up, h);
  const Tensor& g = kind == Activation::gelu ? up : gate;
  const Tensor u = kind == Activation::gelu ? Tensor() : up;
  with_real(up.dtype(), [&]<typename T>(T) {
    produce<T, 1>("activation", Gated<T>{curve_of(kind), matrix_of<T>(g), matrix_of<T>(u)}, {h}, up.rows(),
                  up.cols(), all_pack({g, u}), stream());
  });
}

void DeviceBackend::activation_backward(Activation kind, const Tensor& dh, const Tensor& gate,
                                        const Tensor& up, const Output& dgate, const Output& dup,
                                        const Output& h) {
  check_activation_backward(kind, dh, gate, up, dgate, dup, h, needs_transposed_fp8());
  with_real(up.dtype(), [&]<typename T>(T) {
    const Matrix<T> d = matrix_of<T>(dh), u = matrix_of<T>(up);
    if (kind == Activation::gelu) {
      return produce_with<T, 1>("activation_backward", CurveBackward<T>{Curve::gelu, d, u}, {dup}, h, up,
                                all_pack({dh, up}), stream());
    }
    produce_with<T, 2>("activation_backward", GatedBackward<T>{curve_of(kind), d, matrix_of<T>(gate), u},
                       {dgate, dup}, h, up, all_pack({dh, gate, up}), stream());
  });
}

void DeviceBackend::gate(GateActivation kind, const Tensor& o, const Tensor& g, const Output& y) {
  check_gate(o, g, y);
  gated(kind, o, g, y, stream());
}

void DeviceBackend::gate_backward(GateActivation kind, const Tensor& dy, const Tensor& o, const Tensor& g,
                                  const Tensor& d_o, const Output& dg, const Output& y) {
  check_gate_backward(dy, o, g, d_o, dg, y, needs_transposed_fp8());
  with_real(o.dtype(), [&]<typename T>(T) {
    if (o.cols() == g.cols()) {
      return produce_with<T, 2>(
          "gate_backward",
          GatedBackward<T>{curve_of(kind), matrix_of<T>(dy), matrix_of<T>(g), matrix_of<T>(o)},
          {dg, Output{d_o, {}, {}}}, y, o, all_pack({dy, o, g}), stream());
    }
    if (is_wanted(y)) gated(kind, o, g, y, stream());
    if (g.rows() == 0 && dg.quantized.defined()) return cast(g, dg);  // of nothing, but with a scale
    const std::int64_t heads = g.cols(), width = o.cols() / heads;
    const bool pack = width % kPack == 0 && all_pack({dy, o, d_o});
    const int lanes = lanes_for(pack ? width / kPack : width);
    launch("gate_backward", pack ? head_gate_backward<kPack, T> : head_gate_backward<1, T>,
           {blocks_for(g.rows() * heads, kGateThreads / lanes), kGateThreads}, stream(), curve_of(kind),
           matrix_of<T>(dy), matrix_of<T>(o), matrix_of<T>(g), matrix_of<T>(d_o), sink_of<T>(dg), g.rows(),
           heads, width, lanes);
  });
}

}  // namespace quaver::cuda
