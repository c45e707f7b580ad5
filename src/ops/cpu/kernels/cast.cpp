#include "ops/cpu/kernels/cast.h"

#include "ops/cpu/kernels/quantize.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

/// `Stored` is the type of the values, or f32 when only bytes are wanted: x is already rounded.
template <typename Stored, typename T>
[[gnu::flatten]] void cast_rows(Extent extent, ConstRows x, const ProducerRows& out, const T* type) {
  Producer<Stored> producer(out);
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    const T* from = row_of(x, row, type);
    std::int64_t done = 0;
    for (; done + kStretch <= extent.cols; done += kStretch) producer.store_stretch(row, done, from + done);
    for_vectors(extent.cols - done, [&](std::int64_t i, auto lanes) {
      producer.store(row, done + i, load(from + done + i, lanes), lanes);
    });
  }
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
