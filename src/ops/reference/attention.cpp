#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/contracts.h"
#include "ops/reference/elements.h"
#include "ops/reference/reference_backend.h"

namespace quaver {
namespace {

using reference::RealMatrix;

/// The keys that one query sees, [first, last], as rows of k and v; and the columns of its head.
struct Query {
  std::int64_t row, first, last, q_column, kv_column, head;
};

template <typename F>
void for_queries(const AttentionShape& shape, const Tensor& first_key, const F& f) {
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t i = 0; i < shape.query_len; ++i) {
      const std::int64_t row = b * shape.query_len + i, keys = b * shape.key_len;
      const std::int64_t first = first_key ? first_key.data<std::int32_t>()[row] : 0;
      const std::int64_t last = shape.key_len - shape.query_len + i;
      for (std::int64_t head = 0; head < shape.heads; ++head) {
        const std::int64_t kv_head = head * shape.kv_heads / shape.heads;
        f(Query{row, keys + first, keys + last, head * shape.head_dim, kv_head * shape.head_dim, head});
      }
    }
  }
}

float dot(const RealMatrix& a, std::int64_t a_row, std::int64_t a_column, const RealMatrix& b,
          std::int64_t b_row, std::int64_t b_column, std::int64_t length) {
  float sum = 0;
  for (std::int64_t d = 0; d < length; ++d) sum += a(a_row, a_column + d) * b(b_row, b_column + d);
  return sum;
}

/// Gradients that several queries add to, in FP32 until they are stored.
class Accumulated {
 public:
  explicit Accumulated(const Tensor& target)
      : target_(target), sums_(static_cast<std::size_t>(target.rows() * target.cols())) {}
  void add(std::int64_t row, std::int64_t column, float value) {
    sums_[row * target_.cols() + column] += value;
  }
  void store() const {
    const RealMatrix out(target_);
    for (std::int64_t m = 0; m < target_.rows(); ++m) {
      for (std::int64_t n = 0; n < target_.cols(); ++n) out.set(m, n, sums_[m * target_.cols() + n]);
    }
  }

 private:
  Tensor target_;
  std::vector<float> sums_;
};

}  // namespace

void ReferenceBackend::attention(const AttentionShape& shape, const Tensor& q, const Tensor& k,
                                 const Tensor& v, const Tensor& first_key, const Tensor& out,
                                 const Tensor& lse) {
  check_attention(shape, q, k, v, first_key, out, lse);
  const RealMatrix q_of(q), k_of(k), v_of(v), out_of(out);
  for_queries(shape, first_key, [&](const Query& query) {
    std::vector<float> weights;
    float largest = -std::numeric_limits<float>::infinity();
    for (std::int64_t key = query.first; key <= query.last; ++key) {
      weights.push_back(shape.scale *
                        dot(q_of, query.row, query.q_column, k_of, key, query.kv_column, shape.head_dim));
      largest = std::fmax(largest, weights.back());
    }
    float denominator = 0;
    for (float& weight : weights) {
      weight = std::exp(weight - largest);
      denominator += weight;
    }
    for (std::int64_t d = 0; d < shape.head_dim; ++d) {
      float sum = 0;
      for (std::int64_t key = query.first; key <= query.last; ++key) {
        sum += weights[key - query.first] * v_of(key, query.kv_column + d);
      }
      out_of.set(query.row, query.q_column + d, sum / denominator);
    }
    if (lse) lse.data<float>()[query.row * shape.heads + query.head] = largest + std::log(denominator);
  });
}

void ReferenceBackend::attention_backward(const AttentionShape& shape, const Tensor& dout, const Tensor& q,
                                          const Tensor& k, const Tensor& v, const Tensor& first_key,
                                          const Tensor& out, const Tensor& lse, const Tensor& dq,
                                          const Tensor& dk, const Tensor& dv) {
  check_attention_backward(shape, dout, q, k, v, first_key, out, lse, dq, dk, dv);
  const RealMatrix q_of(q), k_of(k), v_of(v), out_of(out), dout_of(dout);
  Accumulated dq_sum(dq), dk_sum(dk), dv_sum(dv);
  for_queries(shape, first_key, [&](const Query& query) {
    const float delta =
        dot(dout_of, query.row, query.q_column, out_of, query.row, query.q_column, shape.head_dim);
    for (std::int64_t key = query.first; key <= query.last; ++key) {
      const float score =
          shape.scale * dot(q_of, query.row, query.q_column, k_of, key, query.kv_column, shape.head_dim);
      const float p = std::exp(score - lse.data<float>()[query.row * shape.heads + query.head]);
      const float dp = dot(dout_of, query.row, query.q_column, v_of, key, query.kv_column, shape.head_dim);
      const float dscore = p * (dp - delta) * shape.scale;
      for (std::int64_t d = 0; d < shape.head_dim; ++d) {
        dv_sum.add(key, query.kv_column + d, p * dout_of(query.row, query.q_column + d));
        dk_sum.add(key, query.kv_column + d, dscore * q_of(query.row, query.q_column + d));
        dq_sum.add(query.row, query.q_column + d, dscore * k_of(key, query.kv_column + d));
      }
    }
  });
  for (const auto* sum : {&dq_sum, &dk_sum, &dv_sum}) sum->store();
}

}  // namespace quaver
