#include <algorithm>
#include <numbers>
#include <utility>

#include "base/check.h"
#include "ops/cuda/device_backend.h"
#include "ops/cuda/faults.cuh"
#include "ops/cuda/matrix.cuh"
#include "ops/cuda/philox.cuh"
#include "tensor/shape_text.h"

namespace quaver::cuda {
namespace {

constexpr int kThreads = 256;

constexpr int kFillPacks = 4;
template <typename T>
constexpr int kFillWidth = 16 / sizeof(T);  ///< elements of 16 bytes

/// kFillPacks times 16 bytes per thread, as one access each where `pack` says that the address allows it.
template <typename T>
__global__ void __launch_bounds__(kThreads) fill_all(T* data, std::int64_t count, T value, int pack) {
  constexpr int kWidth = kFillWidth<T>;
  Pack<T, kWidth> values;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values.set(i, value);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kFillPacks * kThreads + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kFillPacks; ++k) {
    const std::int64_t begin = (first + k * kThreads) * kWidth;
    if (pack && begin + kWidth <= count) {
      *reinterpret_cast<Pack<T, kWidth>*>(data + begin) = values;
    } else {
      for (std::int64_t i = begin; i < min(count, begin + kWidth); ++i) data[i] = value;
    }
  }
}

/// kPack elements per thread; in packs where `pack` says that both addresses allow it.
template <typename From, typename To>
__global__ void convert_all(const From* from, To* to, std::int64_t count, int pack) {
  const std::int64_t begin = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kPack;
  if (pack && begin + kPack <= count) {
    const auto read = *reinterpret_cast<const Pack<From, kPack>*>(from + begin);
    Pack<To, kPack> written;
#pragma unroll
    for (int i = 0; i < kPack; ++i) written.set(i, round_as<To>(as_float(read.element(i))));
    *reinterpret_cast<Pack<To, kPack>*>(to + begin) = written;
    return;
  }
  for (std::int64_t i = begin; i < min(count, begin + kPack); ++i) to[i] = round_as<To>(as_float(from[i]));
}

/// Random::normal. The device's logarithm and cosine in double differ from the host's in their last bits,
/// which the rounding to FP32 hides in all but a few of 10^9 numbers.
__global__ void fill_normals(float* data, std::int64_t count, float mean, float std, std::uint64_t seed,
                             std::uint64_t stream) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const RandomWords words = random_words(static_cast<std::uint64_t>(i), stream, seed);
  const double u = (static_cast<double>(words.at[0]) + 0.5) * 0x1p-32,
               v = static_cast<double>(words.at[1]) * 0x1p-32;
  const auto normal = static_cast<float>(sqrt(-2 * log(u)) * cos(2 * std::numbers::pi * v));
  data[i] = mean + std * normal;
}

/// Tensors of one launch; small enough to be a kernel's parameter.
struct Sources {
  static constexpr int kMost = 256;
  const unsigned char* bytes[kMost];
};

/// A block for each source.
__global__ void __launch_bounds__(kThreads)
    gather_bytes(Sources sources, unsigned char* to, std::int64_t bytes) {
  for (std::int64_t i = threadIdx.x; i < bytes; i += kThreads)
    to[blockIdx.x * bytes + i] = sources.bytes[blockIdx.x][i];
}

}  // namespace

DeviceBackend::DeviceBackend(std::unique_ptr<DeviceRuntime> runtime, std::unique_ptr<MatrixLibrary> library,
                             std::unique_ptr<AttentionLibrary> attention)
    : runtime_(std::move(runtime)),
      library_(std::move(library)),
      attention_library_(std::move(attention)),
      queue_(runtime_->stream(), [this](const WorkList& list) { return runtime_->record(list); }),
      arena_(std::make_shared<Arena>(runtime_->memory())),
      faults_(std::make_shared<Arena>(runtime_->host_memory())->allocate(kFaultKinds * sizeof(std::int32_t)),
              DType::i32, {kFaultKinds}) {
  std::fill_n(faults_.data<std::int32_t>(), static_cast<int>(kFaultKinds), kNoFault);
}

Tensor DeviceBackend::allocate(DType dtype, Shape shape) {
  for (const std::int64_t extent : shape)
    require(extent >= 0, "allocate: negative extent in shape {}", ShapeText{shape});
  const auto bytes = static_cast<std::size_t>(element_count(shape)) * size_of(dtype);
  return {arena_->allocate(bytes), dtype, std::move(shape)};
}

void DeviceBackend::copy_from_host(const void* source, const Tensor& destination) {
  require(destination.contiguous(), "copy_from_host: the destination must be contiguous");
  const auto bytes = static_cast<std::size_t>(destination.elements()) * size_of(destination.dtype());
  queue_.stop_listing("a copy from the host");
  if (bytes > 0) runtime_->copy_from_host(source, destination.raw(), bytes);
}

void DeviceBackend::copy_to_host(const Tensor& source, void* destination) {
  require(source.contiguous(), "copy_to_host: the source must be contiguous");
  const auto bytes = static_cast<std::size_t>(source.elements()) * size_of(source.dtype());
  queue_.stop_listing("a copy to the host");
  if (bytes > 0) runtime_->copy_to_host(source.raw(), destination, bytes);
  report_faults();
}

void DeviceBackend::report_faults() {
  auto* const rows = faults_.data<std::int32_t>();
  for (int kind = 0; kind < kFaultKinds; ++kind) {
    const std::int32_t row = std::exchange(rows[kind], kNoFault);
    if (row == kNoFault) continue;
    require(kind != kEmbeddingIndex, "embedding: the index at row {} lies outside its table", row);
    fail(ErrorKind::usage, "cross_entropy: the target at row {} is no class (and not -1)", row);
  }
}

MemoryUse DeviceBackend::memory_use() const {
  return arena_->use();
}

void DeviceBackend::copy(const Tensor& source, const Tensor& destination) {
  check_copy(source, destination);
  if (source.elements() == 0) return;
  const std::size_t size = size_of(source.dtype());
  if (source.contiguous() && destination.contiguous()) {
    const std::size_t bytes = static_cast<std::size_t>(source.elements()) * size;
    return copy_rows(source.raw(), bytes, destination.raw(), bytes, bytes, 1);
  }
  copy_rows(source.raw(), static_cast<std::size_t>(source.row_stride()) * size, destination.raw(),
            static_cast<std::size_t>(destination.row_stride()) * size,
            static_cast<std::size_t>(source.cols()) * size, static_cast<std::size_t>(source.rows()));
}

void DeviceBackend::copy_rows(const void* source, std::size_t source_pitch, void* destination,
                              std::size_t destination_pitch, std::size_t width, std::size_t rows) {
  const auto start = [=, this] {
    runtime_->copy_rows(source, source_pitch, destination, destination_pitch, width, rows);
  };
  queue_.add("copy", start, source, source_pitch, destination, destination_pitch, width, rows);
}

void DeviceBackend::gather(std::span<const Tensor> sources, const Tensor& destination) {
  check_gather(sources, destination);
  auto* to = static_cast<unsigned char*>(destination.raw());
  while (!sources.empty()) {
    const std::size_t count = std::min<std::size_t>(sources.size(), Sources::kMost);
    const auto bytes = sources[0].elements() * static_cast<std::int64_t>(size_of(sources[0].dtype()));
    Sources table{};
    for (std::size_t i = 0; i < count; ++i)
      table.bytes[i] = static_cast<const unsigned char*>(sources[i].raw());
    launch("gather", gather_bytes, {count, kThreads}, stream(), table, to, bytes);
    to += static_cast<std::size_t>(bytes) * count;
    sources = sources.subspan(count);
  }
}

void DeviceBackend::fill(const Tensor& destination, double value) {
  check_fill(destination);
  const std::int64_t count = destination.elements();
  const auto fill_with = [&]<typename T>(T element) {
    const int pack = on_pack(destination.raw());
    launch("fill", fill_all<T>, {blocks_for(count, kThreads * kFillPacks * kFillWidth<T>), kThreads},
           stream(), destination.data<T>(), count, element, pack);
  };
  switch (destination.dtype()) {
    case DType::f32:
      return fill_with(static_cast<float>(value));
    case DType::bf16:
      return fill_with(to_bf16(static_cast<float>(value)));
    case DType::i32:
      return fill_with(static_cast<std::int32_t>(value));
    case DType::i64:
      return fill_with(static_cast<std::int64_t>(value));
    default:
      return fill_with(static_cast<std::uint8_t>(value));
  }
}

void DeviceBackend::fill_normal(const Tensor& destination, float mean, float std, std::uint64_t seed,
                                std::uint64_t stream_number) {
  check_fill_normal(destination);
  const std::int64_t count = destination.elements();
  launch("fill_normal", fill_normals, {blocks_for(count, kThreads), kThreads}, stream(),
         destination.data<float>(), count, mean, std, seed, stream_number);
}

void DeviceBackend::convert(const Tensor& source, const Tensor& destination) {
  check_convert(source, destination);
  const std::int64_t count = source.elements();
  with_real(source.dtype(), [&]<typename From>(From) {
    with_real(destination.dtype(), [&]<typename To>(To) {
      const int pack = on_pack(source.raw()) && on_pack(destination.raw());
      launch("convert", convert_all<From, To>, {blocks_for(count, kThreads * kPack), kThreads}, stream(),
             source.data<From>(), destination.data<To>(), count, pack);
    });
  });
}

}  // namespace quaver::cuda
