/// Attention against a formula in double, and its gradients against differences of that.
#include "support/backend_test.h"

namespace quaver::testing {
namespace {

/// Scores, exponentials and sums over at most 9 keys and 5 elements, each rounded to FP32.
constexpr double kBound = 4e-6;

struct Attention {
  AttentionShape shape;
  std::vector<std::int32_t> first_key;
  Doubles q, k, v;

  std::int64_t q_cols() const { return shape.heads * shape.head_dim; }
  std::int64_t kv_cols() const { return shape.kv_heads * shape.head_dim; }
  std::int64_t first(std::int64_t row) const { return first_key.empty() ? 0 : first_key[row]; }
  std::int64_t last(std::int64_t row) const {
    return shape.key_len - shape.query_len + row % shape.query_len;
  }

  /// Index into k and v of element 0 of what head `head` of query `row` reads at `key`.
  std::int64_t kv_index(std::int64_t row, std::int64_t head, std::int64_t key) const {
    const std::int64_t kv_row = row / shape.query_len * shape.key_len + key;
    return kv_row * kv_cols() + head / (shape.heads / shape.kv_heads) * shape.head_dim;
  }
  double score(std::int64_t row, std::int64_t head, std::int64_t key) const {
    double sum = 0;
    for (std::int64_t d = 0; d < shape.head_dim; ++d)
      sum += q[row * q_cols() + head * shape.head_dim + d] * k[kv_index(row, head, key) + d];
    return sum * static_cast<double>(shape.scale);
  }
  double log_sum(std::int64_t row, std::int64_t head) const {
    double sum = 0;
    for (std::int64_t key = first(row); key <= last(row); ++key) sum += std::exp(score(row, head, key));
    return std::log(sum);
  }
  Doubles lse() const {
    Doubles result;
    for (std::int64_t row = 0; row < shape.batch * shape.query_len; ++row) {
      for (std::int64_t head = 0; head < shape.heads; ++head) result.push_back(log_sum(row, head));
    }
    return result;
  }
  Doubles out() const {
    Doubles result(q.size());
    for (std::int64_t row = 0; row < shape.batch * shape.query_len; ++row) {
      for (std::int64_t head = 0; head < shape.heads; ++head) {
        const double denominator = log_sum(row, head);
        for (std::int64_t key = first(row); key <= last(row); ++key) {
          const double p = std::exp(score(row, head, key) - denominator);
          for (std::int64_t d = 0; d < shape.head_dim; ++d)
            result[row * q_cols() + head * shape.head_dim + d] += p * v[kv_index(row, head, key) + d];
        }
      }
    }
    return result;
  }
};

Attention random_attention(const AttentionShape& shape, std::vector<std::int32_t> first_key) {
  const std::int64_t queries = shape.batch * shape.query_len * shape.heads * shape.head_dim;
  const std::int64_t keys = shape.batch * shape.key_len * shape.kv_heads * shape.head_dim;
  return {shape, std::move(first_key), normal_values(queries, 1), normal_values(keys, 2),
          normal_values(keys, 3)};
}

class AttentionOperation : public BackendTest {
 protected:
  void expect_formula_and_gradients(Attention in) {
    const AttentionShape& shape = in.shape;
    const std::int64_t rows = shape.batch * shape.query_len, keys = shape.batch * shape.key_len;
    const Doubles dout = normal_values(rows * in.q_cols(), 4);
    const Tensor q = matrix(in.q, rows, in.q_cols()), k = matrix(in.k, keys, in.kv_cols()),
                 v = matrix(in.v, keys, in.kv_cols());
    const Tensor first_key = in.first_key.empty() ? Tensor() : upload(*backend, in.first_key, {rows});
    const Tensor out = slice(rows, in.q_cols()), lse = backend->allocate(DType::f32, {rows, shape.heads});

    backend->attention(shape, q, k, v, first_key, out, lse);
    expect_close(floats(out), in.out(), kBound, "out");
    expect_close(floats(lse), in.lse(), kBound, "lse");

    const Tensor dq = slice(rows, in.q_cols()), dk = slice(keys, in.kv_cols()),
                 dv = slice(keys, in.kv_cols());
    backend->attention_backward(shape, matrix(dout, rows, in.q_cols()), q, k, v, first_key, out, lse, dq, dk,
                                dv);
    const auto loss = [&] { return dot(in.out(), dout); };
    expect_close(floats(dq), numeric_gradient(in.q, loss), kBound, "dq");
    expect_close(floats(dk), numeric_gradient(in.k, loss), kBound, "dk");
    expect_close(floats(dv), numeric_gradient(in.v, loss), kBound, "dv");
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionOperation, every_backend(), backend_name);

TEST_P(AttentionOperation, OneHead) {
  expect_formula_and_gradients(random_attention({1, 7, 7, 1, 1, 3, 0.6f}, {}));
}

TEST_P(AttentionOperation, GroupedQueries) {
  expect_formula_and_gradients(random_attention({2, 5, 5, 6, 2, 5, 0.45f}, {}));
}

TEST_P(AttentionOperation, FewerQueriesThanKeys) {
  expect_formula_and_gradients(random_attention({2, 3, 9, 4, 2, 3, 0.5f}, {}));
}

TEST_P(AttentionOperation, Documents) {
  expect_formula_and_gradients(random_attention({2, 4, 6, 2, 1, 3, 0.5f}, {0, 3, 3, 5, 2, 2, 4, 4}));
}

}  // namespace
}  // namespace quaver::testing
