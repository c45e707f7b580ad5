#include "ops/cpu/kernels/norms.h"

#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/partial_sums.h"

namespace quaver {

using namespace cpu;

namespace {

float* at_row(float* statistics, std::int64_t row) {
  return statistics == nullptr ? nullptr : statistics + row;
}
const float* at_row(const float* statistics, std::int64_t row) {
  return statistics == nullptr ? nullptr : statistics + row;
}

void norm_forward(const Threads& threads, const NormKernels& kernels, const Tensor& x,
                  const NormForward& norm, const Output& y) {
  const Real real = real_of(x);
  const Pieces pieces = Pieces::of_rows({x.rows(), x.cols()});
  Production production(y, pieces);
  threads.for_each(pieces.count(), [&](std::int64_t index) {
    const Piece piece = pieces.at(index);
    NormForward mine = norm;
    mine.x = part(norm.x, piece, real);
    mine.addend = part(norm.addend, piece, real);
    mine.sum = part(norm.sum, piece, real);
    mine.mean = at_row(norm.mean, piece.row);
    mine.rstd = at_row(norm.rstd, piece.row);
    kernels.forward(real, piece.extent, mine, production.at(piece, real));
  });
  production.finish();
}

/// Runs all blocks; every block's dgain and dbias go to its partial sums.
void norm_backward(const Threads& threads, const NormKernels& kernels, const Tensor& x,
                   const NormBackward& norm, const Output& dx, const PartialSums& dgain,
                   const PartialSums* dbias) {
  const Real real = real_of(x);
  Production production(dx, dgain.blocks());
  threads.for_each(dgain.blocks(), [&](std::int64_t index) {
    const Piece piece = dgain.rows_of_block(index, x.cols());
    NormBackward mine = norm;
    mine.dy = part(norm.dy, piece, real);
    mine.x = part(norm.x, piece, real);
    mine.mean = at_row(norm.mean, piece.row);
    mine.rstd = at_row(norm.rstd, piece.row);
    mine.dgain = dgain.of_block(index);
    mine.dbias = dbias == nullptr ? nullptr : dbias->of_block(index);
    kernels.backward(real, piece.extent, mine, production.at(piece, real));
  });
  production.finish();
}

}  // namespace

void CpuBackend::rms_norm(const NormInput& x, const Tensor& gain, float epsilon, const Output& y,
                          const Tensor& rstd) {
  check_norm("rms_norm", x, gain, Tensor(), y, Tensor(), rstd);
  norm_forward(threads_, *kernels_.norms, x.x,
               {.x = const_rows(x.x),
                .addend = const_rows(x.addend),
                .sum = rows_of(x.sum),
                .gain = gain.data<float>(),
                .epsilon = epsilon,
                .rstd = data_or_null<float>(rstd)},
               y);
}

void CpuBackend::rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& rstd,
                                   bool accumulate_dx, const Output& dx, const Tensor& dgain) {
  check_norm_backward("rms_norm_backward", dy, x, gain, Tensor(), rstd, accumulate_dx, dx, dgain, Tensor());
  const PartialSums dgain_sums(*this, x.rows(), x.cols());
  norm_backward(threads_, *kernels_.norms, x,
                {.dy = const_rows(dy),
                 .x = const_rows(x),
                 .gain = gain.data<float>(),
                 .rstd = rstd.data<float>(),
                 .accumulate_dx = accumulate_dx},
                dx, dgain_sums, nullptr);
  dgain_sums.add_to(threads_, *kernels_.reductions, dgain);
}

void CpuBackend::layer_norm(const NormInput& x, const Tensor& gain, const Tensor& bias, float epsilon,
                            const Output& y, const Tensor& mean, const Tensor& rstd) {
  check_norm("layer_norm", x, gain, bias, y, mean, rstd);
  norm_forward(threads_, *kernels_.norms, x.x,
               {.x = const_rows(x.x),
                .addend = const_rows(x.addend),
                .sum = rows_of(x.sum),
                .gain = gain.data<float>(),
                .bias = bias.data<float>(),
                .epsilon = epsilon,
                .mean = data_or_null<float>(mean),
                .rstd = data_or_null<float>(rstd)},
               y);
}

void CpuBackend::layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain,
                                     const Tensor& mean, const Tensor& rstd, bool accumulate_dx,
                                     const Output& dx, const Tensor& dgain, const Tensor& dbias) {
  check_norm_backward("layer_norm_backward", dy, x, gain, mean, rstd, accumulate_dx, dx, dgain, dbias);
  const PartialSums dgain_sums(*this, x.rows(), x.cols());
  const PartialSums dbias_sums(*this, x.rows(), x.cols());
  norm_backward(threads_, *kernels_.norms, x,
                {.dy = const_rows(dy),
                 .x = const_rows(x),
                 .gain = gain.data<float>(),
                 .mean = mean.data<float>(),
                 .rstd = rstd.data<float>(),
                 .accumulate_dx = accumulate_dx},
                dx, dgain_sums, &dbias_sums);
  dgain_sums.add_to(threads_, *kernels_.reductions, dgain);
  dbias_sums.add_to(threads_, *kernels_.reductions, dbias);
}

}  // namespace quaver
