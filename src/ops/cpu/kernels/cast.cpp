#include "ops/cpu/kernels/cast.h"

#include "ops/cpu/kernels/quantize.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// `Stored` is the type of the values, or f32 when only bytes are wanted: x is already rounded.
template <typename Stored, typename T>
[[gnu::flatten]] void cast_rows(Extent extent, ConstRows x, const ProducerRows& out, const T* type) {
  Producer<Stored> producer(out);
  for (std::int64_t row = 0; row < extent.rows; ++row)
    producer.store_numbers(row, 0, row_of(x, row, type), extent.cols);
  producer.finish();
}

void cast(Real real, Extent extent, ConstRows x, const ProducerRows& out) {
  with_type(real, [&]<typename T>(T* type) {
    out.values != nullptr ? cast_rows<T>(extent, x, out, type) : cast_rows<float>(extent, x, out, type);
  });
}

}  // namespace

extern const CastKernels cast_kernels;
const CastKernels cast_kernels = {.cast = cast};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
