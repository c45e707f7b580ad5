/// The CPU backend's attention against the reference.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "ops/attention_support.h"
#include "ops/cpu/levels.h"
#include "ops/pointwise_support.h"
#include "quaver/backend.h"
#include "quaver/error.h"

namespace quaver {
namespace {

struct Case {
  DType dtype = DType::f32;
  std::int64_t batch = 1, query_len = 1, key_len = 1, heads = 1, kv_heads = 1, head_dim = 1;
  bool documents = false;  ///< with first_key
};

std::string describe(const Case& c) {
  return fmt::format("{} batch {} queries {} keys {} heads {}/{} size {} documents {}", name_of(c.dtype),
                     c.batch, c.query_len, c.key_len, c.heads, c.kv_heads, c.head_dim, c.documents);
}

AttentionShape shape_of(const Case& c) {
  return {c.batch,
          c.query_len,
          c.key_len,
          c.heads,
          c.kv_heads,
          c.head_dim,
          1 / std::sqrt(static_cast<float>(c.head_dim))};
}

/// A slice of columns at an odd offset of a wider matrix.
Tensor matrix(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols, std::uint64_t stream) {
  const Tensor wide = backend.allocate(dtype, {rows, cols + 4});
  const Random random(11, stream);
  for (std::int64_t i = 0; i < wide.elements(); ++i) {
    const float value = random.normal(static_cast<std::uint64_t>(i));
    if (dtype == DType::f32) wide.data<float>()[i] = value;
    if (dtype == DType::bf16) wide.data<bf16>()[i] = to_bf16(value);
  }
  return wide.columns(3, cols);
}

struct Inputs {
  Tensor q, k, v, dout, first_key;
};

/// Documents of 37 positions, and one query that sees its own key only.
Tensor first_keys(Backend& backend, const Case& c) {
  const Tensor keys = backend.allocate(DType::i32, {c.batch * c.query_len});
  for (std::int64_t row = 0; row < keys.elements(); ++row) {
    const std::int64_t position = c.key_len - c.query_len + row % c.query_len;
    keys.data<std::int32_t>()[row] = static_cast<std::int32_t>(row == 1 ? position : position / 37 * 37);
  }
  return keys;
}

Inputs inputs_of(Backend& backend, const Case& c) {
  const std::int64_t queries = c.batch * c.query_len, keys = c.batch * c.key_len;
  return {matrix(backend, c.dtype, queries, c.heads * c.head_dim, 1),
          matrix(backend, c.dtype, keys, c.kv_heads * c.head_dim, 2),
          matrix(backend, c.dtype, keys, c.kv_heads * c.head_dim, 3),
          matrix(backend, c.dtype, queries, c.heads * c.head_dim, 4),
          c.documents ? first_keys(backend, c) : Tensor()};
}

struct Results {
  std::vector<float> out, lse, dq, dk, dv;
  bool operator==(const Results&) const = default;
};

Results run(Backend& backend, const Case& c, const Inputs& in) {
  const AttentionShape shape = shape_of(c);
  const auto like = [&](const Tensor& t) { return matrix(backend, c.dtype, t.rows(), t.cols(), 5); };
  const Tensor out = like(in.q), dq = like(in.q), dk = like(in.k), dv = like(in.v);
  const Tensor lse = backend.allocate(DType::f32, {c.batch * c.query_len, c.heads});
  backend.attention(shape, in.q, in.k, in.v, in.first_key, out, lse);
  backend.attention_backward(shape, in.dout, in.q, in.k, in.v, in.first_key, out, lse, dq, dk, dv);
  return {download(backend, out), download(backend, lse), download(backend, dq), download(backend, dk),
          download(backend, dv)};
}

std::vector<std::shared_ptr<Backend>> exact_levels(int threads) {
  std::vector<std::shared_ptr<Backend>> backends;
  for (cpu::Level level : cpu::supported_levels()) {
    const testing::IsaScope scope{std::string(cpu::name_of(level))};
    backends.push_back(make_backend("cpu", threads));
  }
  return backends;
}

/// And the highest level with its matrix unit, if it has one.
std::vector<std::shared_ptr<Backend>> all_levels(int threads) {
  std::vector<std::shared_ptr<Backend>> backends = exact_levels(threads);
  backends.push_back(make_backend("cpu", threads, Products::fast));
  return backends;
}

// F32: nothing is rounded but by FP32 operations: sums of up to 300 terms (each 2^-24 of a partial sum),
// exponentials within a few 2^-23, and a score's rounding error times its exponential. 2e-5 leaves an order
// of magnitude.
constexpr float kF32Bound = 2e-5f;
// BF16: outputs are rounded to 8 bits (2^-9 relative), and so are the probabilities and their gradients
// before the second products; rounding errors of terms are independent, so sums gain nothing on their largest
// term: 4 roundings of 2^-9 in the worst place, and in backward the rounded `out` in delta as well.
constexpr float kBf16Bound = 2e-2f;

/// NaN where NaN is expected, infinities where they are, and near it elsewhere.
void expect_same_kinds(const std::vector<float>& found, const std::vector<float>& expected, float bound,
                       const std::string& what) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const bool same = std::isnan(expected[i])   ? std::isnan(found[i])
                      : std::isinf(expected[i]) ? found[i] == expected[i]
                                                : std::fabs(found[i] - expected[i]) <= 8 * bound;
    ASSERT_TRUE(same) << what << ", element " << i << ": " << found[i] << ", expected " << expected[i];
  }
}

class AttentionTest : public ::testing::Test {
 protected:
  void expect_near_reference(const Case& c) { expect_near_reference(c, inputs_of(*reference_, c)); }

  void expect_near_reference(const Case& c, const Inputs& inputs) {
    const Results expected = run(*reference_, c, inputs);
    const float bound = c.dtype == DType::f32 ? kF32Bound : kBf16Bound;
    for (const auto& backend : levels_) {
      const Results found = run(*backend, c, inputs);
      const std::string what = describe(c) + " on " + backend->describe();
      EXPECT_LE(testing::relative_error(found.out, expected.out, 0.1f), bound) << what;
      EXPECT_LE(testing::relative_error(found.lse, expected.lse, 0.1f), kF32Bound)
          << what;  // never rounded to BF16
      EXPECT_LE(testing::relative_error(found.dq, expected.dq, 0.1f), bound) << what;
      EXPECT_LE(testing::relative_error(found.dk, expected.dk, 0.1f), bound) << what;
      EXPECT_LE(testing::relative_error(found.dv, expected.dv, 0.1f), bound) << what;
    }
  }

  std::shared_ptr<Backend> reference_ = make_backend("reference");
  std::vector<std::shared_ptr<Backend>> levels_ = all_levels(2);
};

constexpr DType kReals[] = {DType::f32, DType::bf16};

TEST_F(AttentionTest, OddSizesAndGroupsOfHeads) {
  for (DType dtype : kReals) {
    expect_near_reference({dtype, 1, 1, 1, 1, 1, 1});
    expect_near_reference({dtype, 2, 3, 3, 2, 1, 16});
    expect_near_reference({dtype, 1, 65, 65, 3, 3, 17});
    expect_near_reference({dtype, 2, 97, 97, 4, 2, 33});
    expect_near_reference({dtype, 1, 130, 130, 6, 2, 64});
    expect_near_reference({dtype, 1, 70, 70, 2, 1, 250});
    expect_near_reference({dtype, 1, 257, 257, 2, 1, 20});
  }
}

TEST_F(AttentionTest, FewerQueriesThanKeys) {
  for (DType dtype : kReals) {
    expect_near_reference({dtype, 1, 1, 200, 4, 2, 32});
    expect_near_reference({dtype, 2, 5, 97, 2, 2, 24});
    expect_near_reference({dtype, 1, 70, 193, 2, 1, 16});
  }
}

TEST_F(AttentionTest, DocumentsSeeOnlyThemselves) {
  for (DType dtype : kReals) {
    expect_near_reference({dtype, 2, 150, 150, 2, 1, 32, true});
    expect_near_reference({dtype, 1, 300, 300, 2, 2, 16, true});
    expect_near_reference({dtype, 1, 40, 211, 3, 1, 8, true});
  }
}

TEST_F(AttentionTest, ThreadsDoNotChangeBits) {
  for (DType dtype : kReals) {
    const Case c{dtype, 2, 140, 150, 4, 2, 24, true};
    const Inputs inputs = inputs_of(*reference_, c);
    const auto one = all_levels(1);
    for (int threads : {2, 3, 4}) {
      const auto several = all_levels(threads);
      for (std::size_t i = 0; i < one.size(); ++i) {
        EXPECT_TRUE(run(*several[i], c, inputs) == run(*one[i], c, inputs)) << several[i]->describe();
      }
    }
  }
}

TEST_F(AttentionTest, LaterPositionsDoNotChangeEarlierRows) {
  for (DType dtype : kReals) {
    const Case longer{dtype, 1, 200, 200, 2, 1, 32};
    const Inputs all = inputs_of(*reference_, longer);
    for (std::int64_t length : {1, 63, 64, 97, 150}) {
      const Case shorter{dtype, 1, length, length, 2, 1, 32};
      const Inputs first{all.q.slice(0, length),
                         all.k.slice(0, length),
                         all.v.slice(0, length),
                         all.dout.slice(0, length),
                         {}};
      for (const auto& backend : levels_) {
        const Results expected = run(*backend, longer, all), found = run(*backend, shorter, first);
        EXPECT_TRUE(std::equal(found.out.begin(), found.out.end(), expected.out.begin()))
            << backend->describe();
        EXPECT_TRUE(std::equal(found.lse.begin(), found.lse.end(), expected.lse.begin()))
            << backend->describe();
        EXPECT_TRUE(std::equal(found.dq.begin(), found.dq.end(), expected.dq.begin())) << backend->describe();
      }
    }
  }
}

// Generation reads the same rows from a cache one query at a time, by another kernel where the level has one: groups of up to and
// more heads than that takes at once, heads of less and more than its vectors, more and fewer heads than threads.
// But not in the matrix unit, which multiplies many queries: one query is always multiplied exactly.
TEST_F(AttentionTest, OneQueryOverACacheGivesTheRowOfTheWhole) {
  constexpr std::int64_t kLength = 210;
  for (const Case& whole :
       {Case{DType::f32, 1, kLength, kLength, 4, 2, 16}, Case{DType::bf16, 1, kLength, kLength, 4, 2, 16},
        Case{DType::bf16, 1, kLength, kLength, 3, 3, 70}, Case{DType::bf16, 1, kLength, kLength, 7, 1, 64},
        Case{DType::bf16, 1, kLength, kLength, 6, 1, 49}, Case{DType::bf16, 1, kLength, kLength, 12, 3, 1}}) {
    const Inputs all = inputs_of(*reference_, whole);
    const std::int64_t width = whole.heads * whole.head_dim;
    for (const auto& backend : exact_levels(2)) {
      const Results expected = run(*backend, whole, all);
      for (std::int64_t position : {0, 1, 63, 64, 95, 96, 128, 209}) {
        Case one = whole;
        one.query_len = 1, one.key_len = position + 1;
        const Inputs last{all.q.slice(position, 1),
                          all.k.slice(0, position + 1),
                          all.v.slice(0, position + 1),
                          all.dout.slice(position, 1),
                          {}};
        const Results found = run(*backend, one, last);
        const std::string what = describe(one) + " on " + backend->describe();
        EXPECT_TRUE(std::equal(found.out.begin(), found.out.end(), expected.out.begin() + position * width))
            << what;
        EXPECT_TRUE(
            std::equal(found.lse.begin(), found.lse.end(), expected.lse.begin() + position * whole.heads))
            << what;
      }
    }
  }
}

TEST_F(AttentionTest, OneQueryOfSeveralSequencesOnAnyNumberOfThreads) {
  const Case c{DType::bf16, 3, 1, 150, 8, 2, 40};
  const Inputs inputs = inputs_of(*reference_, c);
  expect_near_reference(c);
  const auto one = all_levels(1);
  for (int threads : {2, 3, 7}) {
    const auto several = all_levels(threads);
    for (std::size_t i = 0; i < one.size(); ++i)
      EXPECT_TRUE(run(*several[i], c, inputs) == run(*one[i], c, inputs)) << several[i]->describe();
  }
}

TEST_F(AttentionTest, OneQuerySeesNonfiniteNumbers) {
  const Case c{DType::bf16, 1, 1, 130, 4, 2, 24};
  for (const auto& member : {&Inputs::q, &Inputs::k, &Inputs::v}) {
    for (const float value :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      const Inputs inputs = inputs_of(*reference_, c);
      testing::set(inputs.*member, member == &Inputs::q ? 0 : 97, 25, value);
      const Results expected = run(*reference_, c, inputs);
      for (const auto& backend : levels_) {
        const Results found = run(*backend, c, inputs);
        expect_same_kinds(found.out, expected.out, kBf16Bound, backend->describe());
        expect_same_kinds(found.lse, expected.lse, kBf16Bound, backend->describe());
      }
    }
  }
}

// Scores in the thousands: only exponentials of differences from the maximum are finite.
// Sums keep the scale of a row's first scores until later ones are 2^8 times as large: scores that grow by less than that and by
// more, and that fall, from one block of 96 keys to the next.
TEST_F(AttentionTest, ScoresMayGrowAlongTheKeys) {
  for (float growth : {3.5f, 5.5f, 6.0f, 40.0f, -40.0f}) {
    const Case c{DType::f32, 1, 300, 300, 1, 1, 16};
    const Inputs inputs = inputs_of(*reference_, c);
    for (std::int64_t i = 0; i < c.query_len; ++i) {
      inputs.q.data<float>()[i * inputs.q.row_stride()] = std::sqrt(static_cast<float>(c.head_dim));
      inputs.k.data<float>()[i * inputs.k.row_stride()] = growth * static_cast<float>(i / 96);
    }
    expect_near_reference(c, inputs);
  }
}

TEST_F(AttentionTest, LargeScoresStayFinite) {
  const Case c{DType::f32, 1, 100, 100, 1, 1, 16};
  const Inputs inputs = inputs_of(*reference_, c);
  for (const Tensor& tensor : {inputs.q, inputs.k}) {
    for (std::int64_t i = 0; i < tensor.rows(); ++i) {
      for (std::int64_t d = 0; d < c.head_dim; ++d) tensor.data<float>()[i * tensor.row_stride() + d] *= 30;
    }
  }
  for (const auto& backend : levels_) {
    const Results found = run(*backend, c, inputs);
    for (const auto* values : {&found.out, &found.lse, &found.dq, &found.dk, &found.dv}) {
      EXPECT_TRUE(std::all_of(values->begin(), values->end(), [](float x) { return std::isfinite(x); }))
          << backend->describe();
    }
  }
}

// One number that is not finite: it must reach the rows that see its position, and no other.
TEST_F(AttentionTest, SlowNonfiniteNumbersStayWhereTheyAreSeen) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(),
                  kInfinity = std::numeric_limits<float>::infinity();
  for (DType dtype : kReals) {
    for (bool documents : {false, true}) {
      const Case c{dtype, 1, 130, 130, 4, 2, 24, documents};
      for (const auto& [member, value] :
           {std::pair{&Inputs::q, kNan}, std::pair{&Inputs::k, kNan}, std::pair{&Inputs::v, kNan},
            std::pair{&Inputs::dout, kNan}, std::pair{&Inputs::v, kInfinity},
            std::pair{&Inputs::dout, kInfinity}}) {
        for (std::int64_t position : {5, 70, 129}) {
          const Inputs inputs = inputs_of(*reference_, c);
          const Tensor& planted = inputs.*member;
          testing::set(planted, position, 25, value);
          const Results expected = run(*reference_, c, inputs);
          const float bound = dtype == DType::f32 ? kF32Bound : kBf16Bound;
          for (const auto& backend : levels_) {
            const Results found = run(*backend, c, inputs);
            for (const auto part : {&Results::out, &Results::lse, &Results::dq, &Results::dk, &Results::dv}) {
              expect_same_kinds(found.*part, expected.*part, bound, backend->describe());
            }
          }
        }
      }
    }
  }
}

TEST_F(AttentionTest, LseMayBeAbsentInForward) {
  const Case c{DType::bf16, 1, 10, 10, 2, 1, 8};
  const Inputs inputs = inputs_of(*reference_, c);
  for (const auto& backend : levels_) {
    const Tensor out = backend->allocate(c.dtype, inputs.q.shape());
    backend->attention(shape_of(c), inputs.q, inputs.k, inputs.v, {}, out, {});
    EXPECT_EQ(download(*backend, out), run(*backend, c, inputs).out) << backend->describe();
  }
}

TEST_F(AttentionTest, RefusesShapesThatDoNotFit) {
  const Case c{DType::f32, 1, 10, 10, 2, 1, 8};
  const Inputs inputs = inputs_of(*reference_, c);
  for (const auto& backend : levels_) {
    const Tensor out = backend->allocate(c.dtype, {10, 15});
    EXPECT_THROW(backend->attention(shape_of(c), inputs.q, inputs.k, inputs.v, {}, out, {}), Error);
  }
}

}  // namespace
}  // namespace quaver
