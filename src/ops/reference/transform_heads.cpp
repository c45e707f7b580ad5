#include <cmath>
#include <vector>

#include "ops/contracts.h"
#include "ops/reference/elements.h"
#include "ops/reference/reference_backend.h"

namespace quaver {
namespace {

using Head = std::vector<float>;

/// Turns the pairs (j, j + R/2) by the angle of the position; `direction` -1 turns back, which is the
/// gradient.
Head rotated(const HeadTransform& t, Head x, std::int64_t position, float direction) {
  if (!t.cosine) return x;
  const std::int64_t pairs = t.cosine.cols();
  for (std::int64_t j = 0; j < pairs; ++j) {
    const float c = t.cosine.data<float>()[position * pairs + j];
    const float s = direction * t.sine.data<float>()[position * pairs + j];
    const float a = x[j], b = x[j + pairs];
    x[j] = a * c - b * s;
    x[j + pairs] = b * c + a * s;
  }
  return x;
}

float rstd_of(const HeadTransform& t, const Head& x) {
  float squares = 0;
  for (const float value : x) squares += value * value;
  return 1.0f / std::sqrt(squares / static_cast<float>(x.size()) + t.epsilon);
}

Head normed(const HeadTransform& t, Head x) {
  const float rstd = rstd_of(t, x);
  for (std::size_t d = 0; d < x.size(); ++d) x[d] = x[d] * rstd * t.gain.data<float>()[d];
  return x;
}

/// The gradient of `normed` at x; dgain += dy * xhat.
Head normed_backward(const HeadTransform& t, const Head& dy, const Head& x, const Tensor& dgain) {
  const float rstd = rstd_of(t, x);
  float mean_product = 0;
  for (std::size_t d = 0; d < x.size(); ++d) mean_product += dy[d] * t.gain.data<float>()[d] * x[d] * rstd;
  mean_product /= static_cast<float>(x.size());
  Head dx(x.size());
  for (std::size_t d = 0; d < x.size(); ++d) {
    dgain.data<float>()[d] += dy[d] * x[d] * rstd;
    dx[d] = rstd * (dy[d] * t.gain.data<float>()[d] - mean_product * x[d] * rstd);
  }
  return dx;
}

Head load(const HeadTransform& t, const Tensor& matrix, std::int64_t m, std::int64_t head) {
  Head x(t.head_dim);
  const reference::RealMatrix real(matrix);
  for (std::int64_t d = 0; d < t.head_dim; ++d) x[d] = real(m, head * t.head_dim + d);
  return x;
}

void store(reference::Producer& out, std::int64_t m, std::int64_t head, const Head& x) {
  const auto size = static_cast<std::int64_t>(x.size());
  for (std::int64_t d = 0; d < size; ++d) out.store(m, head * size + d, x[d]);
}

std::int64_t position_of(const Tensor& positions, std::int64_t m) {
  return positions ? positions.data<std::int32_t>()[m] : 0;
}

}  // namespace

void ReferenceBackend::transform_heads(const HeadTransform& transform, const Tensor& x,
                                       const Tensor& positions, const Tensor& out) {
  check_transform_heads(transform, x, positions, out);
  const Output output{out, {}, {}};
  reference::Producer to(output, x.dtype());
  for (std::int64_t m = 0; m < x.rows(); ++m) {
    const std::int64_t position = position_of(positions, m);
    for (std::int64_t head = 0; head < transform.heads; ++head) {
      Head h = load(transform, x, m, head);
      if (transform.norm == QkNorm::pre_rope) h = normed(transform, h);
      h = rotated(transform, h, position, 1);
      if (transform.norm == QkNorm::post_rope) h = normed(transform, h);
      store(to, m, head, h);
    }
  }
}

void ReferenceBackend::transform_heads_backward(const HeadTransform& transform, const Tensor& dout,
                                                const Tensor& x, const Tensor& positions, const Output& dx,
                                                const Tensor& dgain) {
  check_transform_heads_backward(transform, dout, x, positions, dx, dgain);
  reference::Producer to(dx, dout.dtype());
  for (std::int64_t m = 0; m < dout.rows(); ++m) {
    const std::int64_t position = position_of(positions, m);
    for (std::int64_t head = 0; head < transform.heads; ++head) {
      Head d = load(transform, dout, m, head);
      if (transform.norm == QkNorm::post_rope) {
        d = normed_backward(transform, d, rotated(transform, load(transform, x, m, head), position, 1),
                            dgain);
      }
      d = rotated(transform, d, position, -1);
      if (transform.norm == QkNorm::pre_rope)
        d = normed_backward(transform, d, load(transform, x, m, head), dgain);
      store(to, m, head, d);
    }
    for (std::int64_t head = 0; head < transform.untouched; ++head)
      store(to, m, transform.heads + head, load(transform, dout, m, transform.heads + head));
  }
}

}  // namespace quaver
