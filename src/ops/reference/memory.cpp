#include <cstring>

#include "base/random.h"
#include "ops/contracts.h"
#include "ops/reference/elements.h"
#include "ops/reference/reference_backend.h"

namespace quaver {

void ReferenceBackend::copy(const Tensor& source, const Tensor& destination) {
  check_copy(source, destination);
  const std::size_t width = size_of(source.dtype());
  if (source.shape().size() != 2) {
    std::memcpy(destination.raw(), source.raw(), static_cast<std::size_t>(source.elements()) * width);
    return;
  }
  for (std::int64_t m = 0; m < source.rows(); ++m) {
    std::memcpy(destination.slice(m, 1).raw(), source.slice(m, 1).raw(),
                static_cast<std::size_t>(source.cols()) * width);
  }
}

void ReferenceBackend::fill(const Tensor& destination, double value) {
  check_fill(destination);
  const auto store = [&]<typename T>(T element) {
    for (std::int64_t i = 0; i < destination.elements(); ++i) destination.data<T>()[i] = element;
  };
  switch (destination.dtype()) {
    case DType::f32:
      return store(static_cast<float>(value));
    case DType::bf16:
      return store(to_bf16(static_cast<float>(value)));
    case DType::i32:
      return store(static_cast<std::int32_t>(value));
    case DType::i64:
      return store(static_cast<std::int64_t>(value));
    default:
      return store(static_cast<std::uint8_t>(value));
  }
}

void ReferenceBackend::fill_normal(const Tensor& destination, float mean, float std, std::uint64_t seed,
                                   std::uint64_t stream) {
  check_fill_normal(destination);
  const Random random(seed, stream);
  for (std::int64_t i = 0; i < destination.elements(); ++i) {
    destination.data<float>()[i] = mean + std * random.normal(static_cast<std::uint64_t>(i));
  }
}

void ReferenceBackend::convert(const Tensor& source, const Tensor& destination) {
  check_convert(source, destination);
  const Shape row{1, source.elements()};
  const reference::RealMatrix from(source.reshape(row)), to(destination.reshape(row));
  for (std::int64_t i = 0; i < source.elements(); ++i) to.set(0, i, from(0, i));
}

}  // namespace quaver
