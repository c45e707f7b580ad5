#include <algorithm>
#include <cmath>

#include "ops/cuda/cross_entropy_once.cuh"
#include "ops/cuda/device_backend.h"
#include "ops/cuda/produce.cuh"

namespace quaver::cuda {
namespace {

constexpr int kMostWarps = 8;

/// A lane's packs of a part, the first of them at `column`; what lies beyond the row is -infinity.
template <bool kByPacks, typename T>
__device__ void load_part(const Matrix<T>& logits, std::int64_t row, std::int64_t column, std::int64_t cols,
                          PartPacks<T>& z) {
#pragma unroll
  for (int i = 0; i < kPartPacks; ++i) {
    const std::int64_t n = column + i * kPackStride;
    if (kByPacks && n < cols) {
      z[i] = logits.template pack<kPack>(row, n);
      continue;
    }
#pragma unroll
    for (int e = 0; e < kPack; ++e)
      z[i].set(e, !kByPacks && n + e < cols ? *logits.address(row, n + e) : round_as<T>(-kInfinity));
  }
}

/// A block takes a row: its warps sum parts, its first warp joins them.
template <bool kByPacks, typename T>
__global__ void __launch_bounds__(32 * kMostWarps)
    join_logits(Matrix<T> logits, std::int64_t cols, TargetRows of_rows, GradientScale scale) {
  auto* const parts = static_cast<Part*>(dynamic_shared_memory());
  const std::int64_t row = blockIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const auto row_parts = static_cast<int>(blocks_for(cols, kPartCols));
  const int target = of_rows.targets[row];
  const bool has_target = target >= 0 && target < cols;
  for (int p = warp; p < row_parts; p += warps) {
    const std::int64_t column = std::int64_t{p} * kPartCols + lane * kPack, at = target - column;
    PartPacks<T> z;
    load_part<kByPacks>(logits, row, column, cols, z);
    if (at >= 0 && at < kPartCols) leave_out<T>(z, [&](int place) { return place == at; });
    const Part sum = sum_part<T>(z);
    if (lane == 0) parts[p] = sum;
  }
  __syncthreads();
  if (warp > 0) return;
  Part others;
  for (int p = lane; p < row_parts; p += 32) others = join(others, parts[p]);
  others = join_lanes(others);
  if (lane > 0) return;
  if (target != -1) check_index(target, cols, row, kTargetClass, of_rows.faults);
  const JoinedRow joined =
      join_target(others, has_target ? logits(row, target) : -kInfinity, has_target, scale);
  of_rows.losses[row] = joined.loss;
  of_rows.gradients[row] = joined.gradient;
}

/// The gradient's scale times (softmax(z) - onehot(target)); zeros without target.
template <typename T>
struct LogitGradient {
  Matrix<T> logits;
  TargetRows of_rows;
  double sign;  // of the gradient's scale; as wide as a pointer: no padding
  template <int N>
  __device__ Pack<T, N> read(int m, int n) const {
    return logits.template near_pack<N>(m, n);
  }
  template <int N>
  __device__ void operator()(int m, int n, const Pack<T, N>& read, float (&result)[1][N]) const {
    float z[N];
    widen(read, z);
    const int target = of_rows.targets[m];
    const RowGradient gradient = of_rows.gradients[m];
#pragma unroll
    for (int i = 0; i < N; ++i)
      result[0][i] = target < 0 ? 0.0f : static_cast<float>(sign) * scaled_probability(z[i], gradient.offset);
    if (target < n || target >= n + N) return;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i == target - n) result[0][i] = gradient.at_target;
    }
  }
};

/// `missing`: one_pass_numbers of kMissing.
LogitPass one_pass_of(const Tensor& logits, const TargetRows& of_rows, const GradientScale& scale,
                      const Output& dlogits, const Tensor& missing) {
  LogitPass pass{};
  pass.logits = matrix_of<bf16>(logits);
  pass.of_rows = of_rows;
  pass.sink = sink_of<bf16>(dlogits);
  pass.scale = scale;
  pass.rows = static_cast<std::int32_t>(logits.rows());
  pass.cols = static_cast<std::int32_t>(logits.cols());
  pass.groups = pass.rows / kGroupRows;
  pass.strips = pass.cols / kStripCols;
  pass.row_parts = static_cast<std::int32_t>(blocks_for(pass.cols, kPartCols));
  pass.row_magic = static_cast<std::uint32_t>(blocks_for(std::int64_t{1} << 31, pass.row_parts));
  pass.tickets = reinterpret_cast<unsigned*>(missing.data<std::int32_t>());
  pass.parts = reinterpret_cast<Part*>(pass.tickets + kTickets);
  pass.of_rows.gradients =
      reinterpret_cast<RowGradient*>(pass.parts + std::int64_t{pass.rows} * pass.row_parts);
  return pass;
}
std::int64_t one_pass_numbers(const Tensor& logits) {
  return kTickets + 2 * logits.rows() * (1 + blocks_for(logits.cols(), kPartCols));
}

template <typename T>
void launch_two_passes(const Tensor& logits, const TargetRows& of_rows, const GradientScale& scale,
                       const Output& dlogits, Stream stream) {
  const std::int64_t rows = logits.rows(), cols = logits.cols(), row_parts = blocks_for(cols, kPartCols),
                     threads = 32 * std::clamp<std::int64_t>(row_parts, 1, kMostWarps);
  const bool pack = packs(logits);
  const Matrix<T> z = matrix_of<T>(logits);
  launch("cross_entropy", pack ? join_logits<true, T> : join_logits<false, T>,
         {rows, threads, static_cast<std::size_t>(row_parts) * sizeof(Part)}, stream, z, cols, of_rows,
         scale);
  if (!is_wanted(dlogits)) return;
  const double sign = scale.factor < 0 ? -1 : 1;
  produce<T, 1>("cross_entropy", LogitGradient<T>{z, of_rows, sign}, {dlogits}, rows, cols, pack, stream);
}

}  // namespace

void DeviceBackend::cross_entropy(const Tensor& logits, const Tensor& targets, float gradient_scale,
                                  const Tensor& losses, const Output& dlogits) {
  check_cross_entropy(logits, targets, losses, dlogits);
  const GradientScale scale{gradient_scale, std::log2(std::fabs(gradient_scale))};
  TargetRows of_rows{targets.data<std::int32_t>(), losses.data<float>(), nullptr, faults_.data<int>()};
  const ChipSize chip = runtime_->chip_size();
  if (suits_one_pass(logits, gradient_scale, dlogits, chip)) {
    const Tensor missing = allocate(DType::i32, {one_pass_numbers(logits)});
    fill(missing, static_cast<std::int32_t>(kMissing));
    const LogitPass pass = one_pass_of(logits, of_rows, scale, dlogits, missing);
    const auto kernel =
        pass.sink.format == Fp8::e4m3 ? cross_entropy_once<Fp8::e4m3> : cross_entropy_once<Fp8::e5m2>;
    return launch("cross_entropy", kernel, {chip.multiprocessors, kPassThreads, kPassSharedBytes}, stream(),
                  pass);
  }
  const Tensor numbers = allocate(DType::f32, {logits.rows(), 2});
  of_rows.gradients = reinterpret_cast<RowGradient*>(numbers.data<float>());
  with_real(logits.dtype(),
            [&]<typename T>(T) { launch_two_passes<T>(logits, of_rows, scale, dlogits, stream()); });
}

}  // namespace quaver::cuda
