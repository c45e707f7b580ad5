#include "ops/host_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "ops/contracts.h"
#include "tensor/shape_text.h"

namespace quaver {

HostBackend::HostBackend(MemorySource memory) : arena_(std::make_shared<Arena>(std::move(memory))) {}

Tensor HostBackend::allocate(DType dtype, Shape shape) {
  require(std::all_of(shape.begin(), shape.end(), [](std::int64_t extent) { return extent >= 0; }),
          "allocate: negative extent in shape {}", ShapeText{shape});
  const auto bytes = static_cast<std::size_t>(element_count(shape)) * size_of(dtype);
  return {arena_->allocate(bytes), dtype, std::move(shape)};
}

void HostBackend::copy_from_host(const void* source, const Tensor& destination) {
  require(destination.contiguous(), "copy_from_host: the destination must be contiguous");
  if (destination.elements() == 0) return;  // `source` may be null then, which memcpy does not allow
  std::memcpy(destination.raw(), source,
              static_cast<std::size_t>(destination.elements()) * size_of(destination.dtype()));
}

void HostBackend::copy_to_host(const Tensor& source, void* destination) {
  require(source.contiguous(), "copy_to_host: the source must be contiguous");
  if (source.elements() == 0) return;
  std::memcpy(destination, source.raw(),
              static_cast<std::size_t>(source.elements()) * size_of(source.dtype()));
}

void HostBackend::gather(std::span<const Tensor> sources, const Tensor& destination) {
  check_gather(sources, destination);
  auto* to = static_cast<std::byte*>(destination.raw());
  for (const Tensor& source : sources) {
    copy_to_host(source, to);
    to += static_cast<std::size_t>(source.elements()) * size_of(source.dtype());
  }
}

void HostBackend::refuse_non_finite_casts(const Tensor& before, const Tensor& after, const Tensor& norm) {
  check_refuse_non_finite_casts(before, after, norm);
  const auto sum_of = [](const Tensor& counters) {
    std::int64_t sum = 0;
    const auto* row = counters.data<std::int64_t>();
    for (std::int64_t slot = 0; slot < counters.rows(); ++slot, row += kCastCounters)
      sum += row[kCastNan] + row[kCastInfinite];
    return sum;
  };
  if (sum_of(before) != sum_of(after)) *norm.data<float>() = std::numeric_limits<float>::quiet_NaN();
}

void HostBackend::refuse_non_finite(const Tensor& values, const Tensor& norm) {
  check_refuse_non_finite(values, norm);
  const float* const begin = values.data<float>();
  const bool finite = std::all_of(begin, begin + values.elements(), [](float x) { return std::isfinite(x); });
  if (!finite) *norm.data<float>() = std::numeric_limits<float>::quiet_NaN();
}

MemoryUse HostBackend::memory_use() const {
  return arena_->use();
}

}  // namespace quaver
