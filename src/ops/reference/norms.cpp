#include <cmath>

#include "ops/contracts.h"
#include "ops/reference/elements.h"
#include "ops/reference/reference_backend.h"

namespace quaver {
namespace {

using reference::RealMatrix;

/// mean over the row of f(n).
template <typename F>
float mean_of(std::int64_t width, const F& f) {
  double sum = 0;
  for (std::int64_t n = 0; n < width; ++n) sum += f(n);
  return static_cast<float>(sum / static_cast<double>(width));
}

/// Both norms: RMSNorm is LayerNorm with a mean of 0 and no bias, whose gradient has no mean term.
struct NormArguments {
  const Tensor &x, &gain, &bias, &mean, &rstd;
  bool centred;
};

void store_sum(const NormInput& input) {
  if (!input.addend) return;
  const RealMatrix x(input.x), addend(input.addend), sum(input.sum);
  for (std::int64_t m = 0; m < input.x.rows(); ++m) {
    for (std::int64_t n = 0; n < input.x.cols(); ++n) sum.set(m, n, x(m, n) + addend(m, n));
  }
}

void forward(const NormArguments& norm, float epsilon, const Output& y) {
  const RealMatrix x(norm.x);
  const std::int64_t width = norm.x.cols();
  const float* gain = norm.gain.data<float>();
  reference::Producer out(y, norm.x.dtype());
  for (std::int64_t m = 0; m < norm.x.rows(); ++m) {
    const float mean = norm.centred ? mean_of(width, [&](std::int64_t n) { return x(m, n); }) : 0.0f;
    const float variance = mean_of(width, [&](std::int64_t n) { return std::pow(x(m, n) - mean, 2.0f); });
    const float rstd = 1.0f / std::sqrt(variance + epsilon);
    for (std::int64_t n = 0; n < width; ++n) {
      out.store(m, n, (x(m, n) - mean) * rstd * gain[n] + (norm.bias ? norm.bias.data<float>()[n] : 0.0f));
    }
    if (norm.mean) norm.mean.data<float>()[m] = mean;
    if (norm.rstd) norm.rstd.data<float>()[m] = rstd;
  }
}

void backward(const NormArguments& norm, const Tensor& dy_tensor, bool accumulate_dx, const Output& dx,
              const Tensor& dgain, const Tensor& dbias) {
  const RealMatrix x(norm.x), dy(dy_tensor), old(dx.values);
  reference::Producer out(dx, norm.x.dtype());
  const std::int64_t width = norm.x.cols();
  const float* gain = norm.gain.data<float>();
  for (std::int64_t m = 0; m < norm.x.rows(); ++m) {
    const float mean = norm.centred ? norm.mean.data<float>()[m] : 0.0f, rstd = norm.rstd.data<float>()[m];
    const auto xhat = [&](std::int64_t n) { return (x(m, n) - mean) * rstd; };
    const auto dxhat = [&](std::int64_t n) { return dy(m, n) * gain[n]; };
    const float mean_product = mean_of(width, [&](std::int64_t n) { return dxhat(n) * xhat(n); });
    const float mean_gradient = norm.centred ? mean_of(width, dxhat) : 0.0f;
    for (std::int64_t n = 0; n < width; ++n) {
      const float value = rstd * (dxhat(n) - mean_product * xhat(n) - mean_gradient);
      dgain.data<float>()[n] += dy(m, n) * xhat(n);
      if (dbias) dbias.data<float>()[n] += dy(m, n);
      out.store(m, n, accumulate_dx ? old(m, n) + value : value);
    }
  }
}

}  // namespace

void ReferenceBackend::rms_norm(const NormInput& x, const Tensor& gain, float epsilon, const Output& y,
                                const Tensor& rstd) {
  check_norm("rms_norm", x, gain, {}, y, {}, rstd);
  store_sum(x);
  forward({x.normed(), gain, {}, {}, rstd, false}, epsilon, y);
}

void ReferenceBackend::rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain,
                                         const Tensor& rstd, bool accumulate_dx, const Output& dx,
                                         const Tensor& dgain) {
  check_norm_backward("rms_norm_backward", dy, x, gain, {}, rstd, accumulate_dx, dx, dgain, {});
  backward({x, gain, {}, {}, rstd, false}, dy, accumulate_dx, dx, dgain, {});
}

void ReferenceBackend::layer_norm(const NormInput& x, const Tensor& gain, const Tensor& bias, float epsilon,
                                  const Output& y, const Tensor& mean, const Tensor& rstd) {
  check_norm("layer_norm", x, gain, bias, y, mean, rstd);
  store_sum(x);
  forward({x.normed(), gain, bias, mean, rstd, true}, epsilon, y);
}

void ReferenceBackend::layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain,
                                           const Tensor& mean, const Tensor& rstd, bool accumulate_dx,
                                           const Output& dx, const Tensor& dgain, const Tensor& dbias) {
  check_norm_backward("layer_norm_backward", dy, x, gain, mean, rstd, accumulate_dx, dx, dgain, dbias);
  backward({x, gain, {}, mean, rstd, true}, dy, accumulate_dx, dx, dgain, dbias);
}

}  // namespace quaver
