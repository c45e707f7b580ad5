#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/kernels/heads.h"
#include "ops/cpu/partial_sums.h"

namespace quaver {

using namespace cpu;

namespace {

HeadNorm norm_of(QkNorm norm) {
  switch (norm) {
    case QkNorm::none:
      return HeadNorm::none;
    case QkNorm::pre_rope:
      return HeadNorm::before_rotation;
    case QkNorm::post_rope:
      return HeadNorm::after_rotation;
  }
  return HeadNorm::none;
}

HeadLayout layout_of(const HeadTransform& transform, const Tensor& positions) {
  HeadLayout layout{.heads = transform.heads,
                    .head_dim = transform.head_dim,
                    .norm = norm_of(transform.norm),
                    .epsilon = transform.epsilon,
                    .gain = data_or_null<float>(transform.gain),
                    .untouched = transform.untouched};
  if (transform.cosine.defined()) {
    layout.half = transform.cosine.cols();
    layout.cosine = transform.cosine.data<float>();
    layout.sine = transform.sine.data<float>();
    layout.positions = positions.data<std::int32_t>();
  }
  return layout;
}

HeadLayout from_row(HeadLayout layout, std::int64_t row) {
  if (layout.positions != nullptr) layout.positions += row;
  return layout;
}

}  // namespace

void CpuBackend::transform_heads(const HeadTransform& transform, const Tensor& x, const Tensor& positions,
                                 const Tensor& out) {
  check_transform_heads(transform, x, positions, out);
  const HeadLayout layout = layout_of(transform, positions);
  const Real real = real_of(x);
  const Pieces pieces = Pieces::of_rows({x.rows(), x.cols()});
  threads_.for_each(pieces.count(), [&](std::int64_t index) {
    const Piece piece = pieces.at(index);
    std::vector<float> scratch(kHeadsAtOnce * transform.head_dim);
    kernels_.heads->forward(real, piece.extent.rows, from_row(layout, piece.row),
                            part(const_rows(x), piece, real), part(rows_of(out), piece, real),
                            scratch.data());
  });
}

void CpuBackend::transform_heads_backward(const HeadTransform& transform, const Tensor& dout, const Tensor& x,
                                          const Tensor& positions, const Output& dx, const Tensor& dgain) {
  check_transform_heads_backward(transform, dout, x, positions, dx, dgain);
  const HeadLayout layout = layout_of(transform, positions);
  const Real real = real_of(dout);
  const PartialSums dgain_sums(*this, dout.rows(), transform.head_dim);
  Production production(dx, dgain_sums.blocks());
  threads_.for_each(dgain_sums.blocks(), [&](std::int64_t index) {
    const Piece piece = dgain_sums.rows_of_block(index, dout.cols());
    std::vector<float> scratch(kHeadsAtOnce * transform.head_dim);
    std::vector<float> row(dx.quantized.defined() ? dout.cols() : 0);  // of either type
    kernels_.heads->backward(real, piece.extent.rows, from_row(layout, piece.row),
                             part(const_rows(dout), piece, real), part(const_rows(x), piece, real),
                             production.at(piece, real), dgain_sums.of_block(index), scratch.data(),
                             row.data());
  });
  production.finish();
  if (transform.norm != QkNorm::none) dgain_sums.add_to(threads_, *kernels_.reductions, dgain);
}

}  // namespace quaver
