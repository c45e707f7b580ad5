#include "ops/cuda/stored_step.h"

#include <utility>

#include "ops/cuda/block_cast.cuh"
#include "ops/cuda/stored_step.cuh"

namespace quaver::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kWordRows = 4;    // of a word of each transposed row
constexpr int kRowsAtOnce = 2;  // that a lane has under way: with more, registers do not suffice
constexpr int kWarpBlocks = 4;  // blocks of moments that a warp has under way
/// Elements of one tensor per block of threads.
constexpr std::int64_t kStretch = kWarps * kWarpBlocks * kMomentBlock;

template <typename V, typename M>
using StoredTensors = TensorList<StoredTensor<V, M>, 36>;

template <typename V, typename M>
__device__ StoredStep<V, M> step_of(const AdamWFactors& f, std::uint64_t seed, float norm,
                                    const StoredTensor<V, M>& tensor) {
  return {f, tensor.decays ? f.weight_decay : 0.0f, clip_of(f, norm), seed, tensor};
}

template <typename V, typename M>
__global__ void __launch_bounds__(kThreads)
    adamw_stored(AdamWFactors f, std::uint64_t seed, const float* norm, StoredTensors<V, M> all) {
  const float length = *norm;
  if (!usable(length, f.max_norm)) return;
  const int block = static_cast<int>(blockIdx.x), index = all.of_block(block);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const StoredTensor<V, M>& tensor = all.tensors[index];
  const StoredStep<V, M> step = step_of(f, seed, length, tensor);
  const std::int64_t first = (block - all.first_block[index]) * kStretch + warp * kWarpBlocks * kMomentBlock;
  StoredPack<V, M> packs[kWarpBlocks];
#pragma unroll
  for (int b = 0; b < kWarpBlocks; ++b)
    packs[b] = load_stored(tensor, first + b * kMomentBlock + lane * kStepPack);
#pragma unroll
  for (int b = 0; b < kWarpBlocks; ++b) {
    if (first + b * kMomentBlock >= tensor.elements) return;
    const std::int64_t at = first + b * kMomentBlock + lane * kStepPack;
    step(at, packs[b]);
    store_stored(tensor, at, packs[b]);
  }
}

/// One with an FP8 copy, whose rows are whole blocks of moments.
template <typename V, typename M>
struct StoredMatrix {
  StoredTensor<V, M> tensor;
  std::int64_t rows, cols;
  Sink<float> sink;
};
template <typename V, typename M>
using StoredMatrices = TensorList<StoredMatrix<V, M>, 18>;

/// One block per tile of 128 x 128: the update, and the cast of what is stored. A warp takes 4 rows at a time, and so whole words of
/// the transposed rows.
template <typename V, typename M>
__global__ void __launch_bounds__(kBlockCastThreads, 2)
    adamw_stored_cast(AdamWFactors f, std::uint64_t seed, const float* norm, StoredMatrices<V, M> all) {
  __shared__ __align__(16) unsigned transposed[kBlock * kSideWords];
  const float length = *norm;
  if (!usable(length, f.max_norm)) return;
  const int block = static_cast<int>(blockIdx.x), index = all.of_block(block);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const StoredMatrix<V, M>& matrix = all.tensors[index];
  const StoredTensor<V, M>& tensor = matrix.tensor;
  const Sink<float>& sink = matrix.sink;
  const StoredStep<V, M> step = step_of(f, seed, length, tensor);
  const std::int64_t rows = matrix.rows, cols = matrix.cols, across = cols / kBlock,
                     part = block - all.first_block[index];
  const TilePlace place{part / across, part % across, rows, cols};
  const std::int64_t column = place.across * kBlock + lane * kStepPack;
  const CastScale scale = sink.cast_scale();
  CastTrace trace;
  for (int group = warp; group < kSideWords; group += kWarps) {
    const std::int64_t row = place.down * kBlock + group * kWordRows;
    unsigned words[kWordRows] = {};
#pragma unroll
    for (int first = 0; first < kWordRows; first += kRowsAtOnce) {
      StoredPack<V, M> packs[kRowsAtOnce];
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        if (row + first + r < rows) packs[r] = load_whole(tensor, (row + first + r) * cols + column);
      }
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const std::int64_t m = row + first + r, at = m * cols + column;
        if (m >= rows) continue;
        step(at, packs[r]);
        store_whole(tensor, at, packs[r]);
        unsigned word[1];
        trace.cast(scale, packs[r].value, word);
        words[first + r] = word[0];
        if (sink.bytes.data) *reinterpret_cast<unsigned*>(sink.bytes.address(m, column)) = word[0];
      }
    }
    transpose_words(words);
#pragma unroll
    for (int i = 0; i < kStepPack; ++i) {
      const int n = lane * kStepPack + i;
      transposed[n * kSideWords + (group ^ swizzle(n))] = words[i];
    }
  }
  __syncthreads();
  if (sink.transposed.data) write_transposed_words(sink, transposed, place);
  record(sink, trace);
  if (part == 0 && threadIdx.x == 0) record_once(sink, rows * cols);
}

/// Another matrix with an FP8 copy: that is cast after the step.
template <typename V>
struct SteppedMatrix {
  V* value;
  std::int64_t rows, cols;
  std::array<Sink<float>, 1> sinks;
  std::int64_t packs;  // a number: no padding
};
template <typename V>
using SteppedMatrices = TensorList<SteppedMatrix<V>, 32>;

template <typename V>
__global__ void __launch_bounds__(kTileThreads)
    cast_stepped(float max_norm, const float* norm, SteppedMatrices<V> all) {
  if (!usable(*norm, max_norm)) return;
  const int block = static_cast<int>(blockIdx.x), index = all.of_block(block);
  const SteppedMatrix<V>& matrix = all.tensors[index];
  cast_part(matrix, block - all.first_block[index], [&] { return Identity<V>{{matrix.value, matrix.cols}}; });
}

bool fits_tiles(const AdamWTensor& tensor) {
  return tensor.value.cols() % kMomentBlock == 0 && all_on_pack(tensor) && packs(cast_of(tensor));
}

template <typename V, typename M>
StoredTensor<V, M> stored_tensor(const AdamWStep& step, const AdamWTensor& tensor) {
  const auto scales = [](const Tensor& all) { return all ? all.data<float>() : nullptr; };
  const auto noise = [&](StepArray array) { return step_noise(step, tensor, array).stream; };
  return {tensor.gradient.data<float>(),
          tensor.value.data<V>(),
          tensor.m.data<M>(),
          tensor.v.data<M>(),
          scales(tensor.m_scales),
          scales(tensor.v_scales),
          bf16_copy(tensor),
          tensor.value.elements(),
          noise(StepArray::value),
          noise(StepArray::m),
          noise(StepArray::v),
          tensor.decays,
          all_on_pack(tensor)};
}

template <typename V>
std::pair<SteppedMatrix<V>, std::int64_t> stepped_matrix(const AdamWTensor& tensor) {
  const std::int64_t rows = tensor.value.rows(), cols = tensor.value.cols();
  const Output cast = cast_of(tensor);
  return {{tensor.value.data<V>(), rows, cols, {sink_of<float>(cast)}, packs(tensor.value) && packs(cast)},
          tiles_of(rows, cols)};
}

/// Where tensors and numbers of a step are.
struct StepCall {
  const AdamWStep& step;
  const AdamWFactors& factors;
  const float* norm;
  Stream stream;
};

/// Those tensors whose value and moments are of these types.
template <typename V, typename M>
void step_types(const StepCall& call, const std::vector<const AdamWTensor*>& tensors, DType value,
                DType moments) {
  std::vector<const AdamWTensor*> plain, tiled, cast_after;
  for (const AdamWTensor* tensor : tensors) {
    if (tensor->value.dtype() != value || tensor->m.dtype() != moments) continue;
    const bool is_cast = tensor->copies.fp8.defined(), is_tiled = is_cast && fits_tiles(*tensor);
    (is_tiled ? tiled : plain).push_back(tensor);
    if (is_cast && !is_tiled) cast_after.push_back(tensor);
  }
  for_launches<StoredTensors<V, M>>(
      plain,
      [&](const AdamWTensor& tensor) {
        return std::pair(stored_tensor<V, M>(call.step, tensor),
                         blocks_for(tensor.value.elements(), kStretch));
      },
      [&](const StoredTensors<V, M>& list, std::int64_t blocks) {
        launch("adamw", adamw_stored<V, M>, {blocks, kThreads}, call.stream, call.factors, call.step.seed,
               call.norm, list);
      });
  for_launches<StoredMatrices<V, M>>(
      tiled,
      [&](const AdamWTensor& tensor) {
        const std::int64_t rows = tensor.value.rows(), cols = tensor.value.cols();
        return std::pair(StoredMatrix<V, M>{stored_tensor<V, M>(call.step, tensor), rows, cols,
                                            sink_of<float>(cast_of(tensor))},
                         blocks_for(rows, kBlock) * (cols / kBlock));
      },
      [&](const StoredMatrices<V, M>& list, std::int64_t blocks) {
        launch("adamw and cast", adamw_stored_cast<V, M>, {blocks, kBlockCastThreads}, call.stream,
               call.factors, call.step.seed, call.norm, list);
      });
  for_launches<SteppedMatrices<V>>(cast_after, stepped_matrix<V>,
                                   [&](const SteppedMatrices<V>& list, std::int64_t blocks) {
                                     launch("cast after adamw", cast_stepped<V>, {blocks, kTileThreads},
                                            call.stream, call.factors.max_norm, call.norm, list);
                                   });
}

}  // namespace

void step_stored(const AdamWStep& step, const AdamWFactors& factors, const float* norm,
                 const std::vector<const AdamWTensor*>& tensors, Stream stream) {
  const StepCall call{step, factors, norm, stream};
  step_types<float, bf16>(call, tensors, DType::f32, DType::bf16);
  step_types<float, std::uint8_t>(call, tensors, DType::f32, DType::e4m3);
  step_types<bf16, float>(call, tensors, DType::bf16, DType::f32);
  step_types<bf16, bf16>(call, tensors, DType::bf16, DType::bf16);
  step_types<bf16, std::uint8_t>(call, tensors, DType::bf16, DType::e4m3);
}

}  // namespace quaver::cuda
