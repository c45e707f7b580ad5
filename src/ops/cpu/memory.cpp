#include <algorithm>
#include <cstring>

#include "base/random.h"
#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/kernels/pointwise.h"
#include "ops/cpu/work.h"

namespace quaver {

using namespace cpu;

namespace {

constexpr std::int64_t kBlock = std::int64_t{1} << 16;  // elements

template <typename T>
void fill_elements(const Threads& threads, const Tensor& destination, T value) {
  T* data = destination.data<T>();
  threads.for_blocks(destination.elements(), kBlock, [&](std::int64_t begin, std::int64_t end) {
    std::fill(data + begin, data + end, value);
  });
}

}  // namespace

void CpuBackend::copy(const Tensor& source, const Tensor& destination) {
  check_copy(source, destination);
  const auto width = static_cast<std::int64_t>(size_of(source.dtype()));
  const auto* from = static_cast<const std::byte*>(source.raw());
  auto* to = static_cast<std::byte*>(destination.raw());
  if (source.contiguous() && destination.contiguous()) {
    threads_.for_blocks(source.elements() * width, kBlock * 4, [&](std::int64_t begin, std::int64_t end) {
      std::memcpy(to + begin, from + begin, end - begin);
    });
    return;
  }
  const std::int64_t rows_per_block =
      std::max<std::int64_t>(1, kBlock / std::max<std::int64_t>(1, source.cols()));
  threads_.for_blocks(source.rows(), rows_per_block, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      std::memcpy(to + row * destination.row_stride() * width, from + row * source.row_stride() * width,
                  source.cols() * width);
    }
  });
}

void CpuBackend::fill(const Tensor& destination, double value) {
  check_fill(destination);
  switch (destination.dtype()) {
    case DType::f32:
      return fill_elements(threads_, destination, static_cast<float>(value));
    case DType::bf16:
      return fill_elements(threads_, destination, to_bf16(static_cast<float>(value)));
    case DType::i32:
      return fill_elements(threads_, destination, static_cast<std::int32_t>(value));
    case DType::i64:
      return fill_elements(threads_, destination, static_cast<std::int64_t>(value));
    case DType::u8:
      return fill_elements(threads_, destination, static_cast<std::uint8_t>(value));
    case DType::e4m3:
    case DType::e5m2:
    case DType::e8m0:
    case DType::e2m1:
      break;
  }
}

void CpuBackend::fill_normal(const Tensor& destination, float mean, float std, std::uint64_t seed,
                             std::uint64_t stream) {
  check_fill_normal(destination);
  const Random random(seed, stream);
  auto* data = destination.data<float>();
  threads_.for_blocks(destination.elements(), kBlock / 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      data[i] = mean + std * random.normal(static_cast<std::uint64_t>(i));
  });
}

void CpuBackend::convert(const Tensor& source, const Tensor& destination) {
  check_convert(source, destination);
  if (source.dtype() == destination.dtype()) return copy(source, destination);
  const auto* from = static_cast<const std::byte*>(source.raw());
  auto* to = static_cast<std::byte*>(destination.raw());
  const auto from_width = static_cast<std::int64_t>(size_of(source.dtype()));
  const auto to_width = static_cast<std::int64_t>(size_of(destination.dtype()));
  threads_.for_blocks(source.elements(), kBlock, [&](std::int64_t begin, std::int64_t end) {
    kernels_.pointwise->convert(real_of(source), from + begin * from_width, real_of(destination),
                                to + begin * to_width, end - begin);
  });
}

}  // namespace quaver
