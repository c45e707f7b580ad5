/// The CUDA backend's attention kernels, run by the launch emulation, against the reference.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/random.h"
#include "ops/attention_support.h"
#include "ops/cuda/attention.h"
#include "quaver/backend.h"
#include "quaver/error.h"

namespace quaver {
namespace {

struct Case {
  DType dtype = DType::bf16;
  std::int64_t batch = 1, query_len = 1, key_len = 1, heads = 1, kv_heads = 1, head_dim = 16;
  std::int64_t document = 0;  ///< length of the documents; 0: no first_key
  bool aligned = false;       ///< rows of 16-byte multiples; else slices at an odd offset
  int row_tiles = 1;          ///< of BF16
  bool warpgroups = false;    ///< of aligned BF16
};

Case of_warpgroups(std::int64_t batch, std::int64_t query_len, std::int64_t key_len, std::int64_t heads,
                   std::int64_t kv_heads, std::int64_t head_dim, std::int64_t document = 0) {
  return {DType::bf16, batch, query_len, key_len, heads, kv_heads, head_dim, document, true, 0, true};
}

std::string describe(const Case& c) {
  return fmt::format(
      "{} batch {} queries {} keys {} heads {}/{} size {} documents {} aligned {} row tiles {} warpgroups {}",
      name_of(c.dtype), c.batch, c.query_len, c.key_len, c.heads, c.kv_heads, c.head_dim, c.document,
      c.aligned, c.row_tiles, c.warpgroups);
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

struct Inputs {
  Tensor q, k, v, dout, first_key;
};

struct Results {
  std::vector<float> out, lse, dq, dk, dv;
};

cuda::AttentionMatrix matrix_of(const Tensor& tensor) {
  return {tensor.raw(), tensor.row_stride()};
}

cuda::AttentionCall call_of(const AttentionShape& shape, const Inputs& in, const Tensor& out,
                            const Tensor& lse) {
  return {.shape = shape,
          .dtype = in.q.dtype(),
          .q = matrix_of(in.q),
          .k = matrix_of(in.k),
          .v = matrix_of(in.v),
          .first_key = in.first_key ? in.first_key.data<std::int32_t>() : nullptr,
          .out = matrix_of(out),
          .lse = lse ? lse.data<float>() : nullptr,
          .lse_stride = lse ? lse.row_stride() : 0};
}

// FP32: sums of up to 200 terms (each 2^-24 of a partial sum), exponentials within a few 2^-23, and a score's
// rounding error times its exponential: 1e-5 leaves an order of magnitude.
constexpr float kF32Bound = 1e-5f;
// BF16: both results are rounded (2^-9 relative each), the kernels round probabilities and the gradients of
// scores before the second products (2^-9), and the two outs that delta reads may be neighbours (2^-8 times
// dout, which normal numbers bring to 3). Errors of terms are independent, so sums gain nothing on their
// largest term: 9 roundings of 2^-9 in the worst place.
constexpr float kBf16Bound = 1.7e-2f;

class CudaAttentionTest : public ::testing::Test {
 protected:
  /// Uninitialised; of the kind that the case wants.
  Tensor allocate(const Case& c, std::int64_t rows, std::int64_t cols) {
    if (c.aligned) return reference_->allocate(c.dtype, {rows, (cols + 15) / 8 * 8}).columns(0, cols);
    return reference_->allocate(c.dtype, {rows, cols + 4}).columns(3, cols);
  }

  Tensor random_matrix(const Case& c, std::int64_t rows, std::int64_t cols, std::uint64_t stream) {
    const Random random(11, stream);
    std::vector<float> values;
    for (std::int64_t i = 0; i < rows * cols; ++i)
      values.push_back(random.normal(static_cast<std::uint64_t>(i)));
    const Tensor matrix = allocate(c, rows, cols);
    reference_->copy(upload(*reference_, values, {rows, cols}, c.dtype), matrix);
    return matrix;
  }

  Tensor first_keys(const Case& c, const std::function<std::int64_t(std::int64_t)>& of_position) {
    const Tensor keys = reference_->allocate(DType::i32, {c.batch * c.query_len});
    for (std::int64_t row = 0; row < keys.elements(); ++row) {
      const std::int64_t position = c.key_len - c.query_len + row % c.query_len;
      keys.data<std::int32_t>()[row] = static_cast<std::int32_t>(of_position(position));
    }
    return keys;
  }

  Inputs inputs_of(const Case& c) {
    const std::int64_t queries = c.batch * c.query_len, keys = c.batch * c.key_len;
    return {random_matrix(c, queries, c.heads * c.head_dim, 1),
            random_matrix(c, keys, c.kv_heads * c.head_dim, 2),
            random_matrix(c, keys, c.kv_heads * c.head_dim, 3),
            random_matrix(c, queries, c.heads * c.head_dim, 4),
            c.document == 0 ? Tensor() : first_keys(c, [&](std::int64_t position) {
              return position / c.document * c.document;
            })};
  }

  struct Outputs {
    Tensor out, lse, dq, dk, dv;
  };
  Outputs outputs_of(const Case& c, const Inputs& in) {
    const auto like = [&](const Tensor& t) { return allocate(c, t.rows(), t.cols()); };
    return {like(in.q), reference_->allocate(DType::f32, {c.batch * c.query_len, c.heads}), like(in.q),
            like(in.k), like(in.v)};
  }
  Results results_of(const Outputs& o) {
    return {download(*reference_, o.out), download(*reference_, o.lse), download(*reference_, o.dq),
            download(*reference_, o.dk), download(*reference_, o.dv)};
  }

  Results expected(const Case& c, const Inputs& in) {
    const Outputs o = outputs_of(c, in);
    reference_->attention(shape_of(c), in.q, in.k, in.v, in.first_key, o.out, o.lse);
    reference_->attention_backward(shape_of(c), in.dout, in.q, in.k, in.v, in.first_key, o.out, o.lse, o.dq,
                                   o.dk, o.dv);
    return results_of(o);
  }

  Results run(const Case& c, const Inputs& in) {
    const Outputs o = outputs_of(c, in);
    cuda::AttentionCall call = call_of(shape_of(c), in, o.out, o.lse);
    call.row_tiles = c.row_tiles;
    call.warpgroups = c.warpgroups;
    cuda::launch_attention(call, {});
    const Tensor workspace = reference_->allocate(DType::u8, {cuda::attention_workspace(call)});
    cuda::launch_attention_backward(
        call, {matrix_of(in.dout), matrix_of(o.dq), matrix_of(o.dk), matrix_of(o.dv), workspace.raw()}, {});
    return results_of(o);
  }

  void expect_near_reference(const Case& c) { expect_near_reference(c, inputs_of(c)); }
  void expect_near_reference(const Case& c, const Inputs& in) {
    const Results wanted = expected(c, in), found = run(c, in);
    const float bound = c.dtype == DType::f32 ? kF32Bound : kBf16Bound;
    EXPECT_LE(testing::relative_error(found.out, wanted.out), bound) << describe(c);
    EXPECT_LE(testing::relative_error(found.lse, wanted.lse), kF32Bound)
        << describe(c);  // never rounded to BF16
    EXPECT_LE(testing::relative_error(found.dq, wanted.dq), bound) << describe(c);
    EXPECT_LE(testing::relative_error(found.dk, wanted.dk), bound) << describe(c);
    EXPECT_LE(testing::relative_error(found.dv, wanted.dv), bound) << describe(c);
  }

  std::shared_ptr<Backend> reference_ = make_backend("reference");
};

using SlowCudaAttentionTest = CudaAttentionTest;

constexpr DType kReals[] = {DType::f32, DType::bf16};

TEST_F(CudaAttentionTest, SlowOddLengthsAndGroupsOfHeads) {
  for (DType dtype : kReals) {
    expect_near_reference({dtype, 1, 1, 1, 1, 1, 16});
    expect_near_reference({dtype, 2, 3, 3, 2, 1, 32});
    expect_near_reference({dtype, 1, 17, 17, 4, 2, 16});
    expect_near_reference({dtype, 1, 65, 65, 2, 2, 8, 0, true});
    expect_near_reference({dtype, 1, 130, 130, 2, 1, 20});
  }
}

TEST_F(CudaAttentionTest, SlowFewerQueriesThanKeys) {
  for (DType dtype : kReals) {
    expect_near_reference({dtype, 2, 1, 200, 4, 2, 32});
    expect_near_reference({dtype, 1, 5, 97, 2, 2, 24});
    expect_near_reference({dtype, 1, 66, 130, 1, 1, 16, 0, true});
  }
}

TEST_F(CudaAttentionTest, DocumentsSeeOnlyThemselves) {
  for (DType dtype : kReals) {
    expect_near_reference({dtype, 1, 70, 70, 1, 1, 16, 1});
    expect_near_reference({dtype, 1, 130, 130, 1, 1, 16, 64, true});
    expect_near_reference({dtype, 1, 40, 150, 2, 1, 8, 37});
  }
}

TEST_F(SlowCudaAttentionTest, AnyHeadSize) {
  for (DType dtype : kReals) {
    for (std::int64_t size : {1, 7, 40, 80, 96, 127, 128, 129, 250}) {
      expect_near_reference({dtype, 1, 70, 70, 1, 1, size});
    }
    for (std::int64_t size : {16, 40, 64, 80, 128, 256}) {
      expect_near_reference({dtype, 1, 70, 70, 1, 1, size, 0, true});
    }
  }
}

TEST_F(SlowCudaAttentionTest, TwoTilesOfAnyHeadSize) {
  for (std::int64_t size : {40, 64, 96, 128}) {
    expect_near_reference({DType::bf16, 1, 140, 140, 1, 1, size, 70, size % 3 == 0, 2});
  }
}

TEST_F(SlowCudaAttentionTest, SeveralSequencesHeadsAndDocuments) {
  for (DType dtype : kReals) {
    for (int row_tiles : {1, 2}) {
      expect_near_reference({dtype, 2, 150, 150, 4, 2, 32, 37, false, row_tiles});
      expect_near_reference({dtype, 1, 300, 300, 1, 1, 16, 150, true, row_tiles});
      expect_near_reference({dtype, 1, 90, 211, 2, 1, 128, 70, false, row_tiles});
    }
  }
}

// Nothing says that first_key ascends, and a block of queries may hold any of them.
TEST_F(SlowCudaAttentionTest, FirstKeysInAnyOrder) {
  for (DType dtype : kReals) {
    const Case c{dtype, 2, 140, 170, 2, 1, 16};
    Inputs in = inputs_of(c);
    in.first_key = first_keys(
        c, [](std::int64_t position) { return position * 7919 % (position + 1) / 2 + position % 3; });
    expect_near_reference(c, in);
  }
}

TEST_F(CudaAttentionTest, QueriesWithoutKeysGiveNothing) {
  for (const Case& c : {Case{DType::f32, 1, 100, 100, 2, 1, 8}, Case{DType::bf16, 1, 100, 100, 2, 1, 8},
                        of_warpgroups(1, 100, 100, 2, 1, 8)}) {
    Inputs in = inputs_of(c);
    const auto blind = [](std::int64_t position) { return position == 5 || position / 20 == 4; };
    in.first_key = first_keys(c, [&](std::int64_t position) { return blind(position) ? position + 1 : 0; });
    const Results wanted = expected(c, in), found = run(c, in);
    const float bound = c.dtype == DType::f32 ? kF32Bound : kBf16Bound;
    for (const auto gradient : {&Results::dq, &Results::dk, &Results::dv}) {
      EXPECT_LE(testing::relative_error(found.*gradient, wanted.*gradient), bound) << describe(c);
    }
    for (std::int64_t i = 0; i < c.query_len * c.heads; ++i) {
      EXPECT_EQ(found.lse[i] == -std::numeric_limits<float>::infinity(), blind(i / c.heads)) << i;
      for (std::int64_t d = 0; d < c.head_dim; ++d) {
        EXPECT_EQ(std::isnan(found.out[i * c.head_dim + d]), blind(i / c.heads)) << i;
        if (blind(i / c.heads)) {
          EXPECT_EQ(found.dq[i * c.head_dim + d], 0) << i;
        }
      }
    }
  }
}

// Both ways of reading memory lead through the same tiles, and every row is summed in the same order whatever
// else its warp holds.
TEST_F(CudaAttentionTest, SlowAlignmentAndTilesDoNotChangeBits) {
  for (DType dtype : kReals) {
    const Case odd{dtype, 1, 75, 90, 2, 1, 24, 30};
    const Results expected = run(odd, inputs_of(odd));
    for (int row_tiles : {0, 1, 2}) {
      Case even = odd;
      even.aligned = true;
      even.row_tiles = row_tiles;
      const Results found = run(even, inputs_of(even));
      for (const auto result : {&Results::out, &Results::lse, &Results::dq, &Results::dk, &Results::dv}) {
        EXPECT_EQ(found.*result, expected.*result) << describe(even);
      }
    }
  }
}

TEST_F(CudaAttentionTest, TwoTilesPerWarp) {
  for (std::int64_t length : {1, 64, 65, 130}) {
    expect_near_reference({DType::bf16, 1, length, length + 7, 2, 1, 16, 50, true, 2});
  }
}

// Generation reads the same rows from a cache, one query at a time. The keys of a row are summed in the same
// blocks whichever tile it stands in.
TEST_F(SlowCudaAttentionTest, OneQueryOverACacheGivesTheRowOfTheWhole) {
  for (DType dtype : kReals) {
    const Case whole{dtype, 1, 140, 140, 2, 1, 16};
    const Inputs all = inputs_of(whole);
    const Results results = run(whole, all);
    for (std::int64_t position : {0, 1, 63, 64, 127, 139}) {
      const Case one{dtype, 1, 1, position + 1, 2, 1, 16};
      const Results found = run(one, {all.q.slice(position, 1),
                                      all.k.slice(0, position + 1),
                                      all.v.slice(0, position + 1),
                                      all.dout.slice(position, 1),
                                      {}});
      EXPECT_TRUE(std::equal(found.out.begin(), found.out.end(), results.out.begin() + position * 2 * 16))
          << name_of(dtype) << " position " << position;
    }
  }
}

// Scores in the thousands: only exponentials of differences from the maximum are finite.
TEST_F(CudaAttentionTest, LargeScoresStayFinite) {
  for (DType dtype : kReals) {
    const Case c{dtype, 1, 100, 100, 1, 1, 16};
    Inputs in = inputs_of(c);
    AttentionShape shape = shape_of(c);
    shape.scale = 300;
    const Outputs o = outputs_of(c, in);
    const cuda::AttentionCall call = call_of(shape, in, o.out, o.lse);
    cuda::launch_attention(call, {});
    const Tensor workspace = reference_->allocate(DType::u8, {cuda::attention_workspace(call)});
    cuda::launch_attention_backward(
        call, {matrix_of(in.dout), matrix_of(o.dq), matrix_of(o.dk), matrix_of(o.dv), workspace.raw()}, {});
    const Results found = results_of(o);
    for (const auto* values : {&found.out, &found.lse, &found.dq, &found.dk, &found.dv}) {
      EXPECT_TRUE(std::all_of(values->begin(), values->end(), [](float x) { return std::isfinite(x); }))
          << name_of(dtype);
    }
  }
}

// In out and dq; dk and dv sum over queries, so that every key it sees gets it.
TEST_F(CudaAttentionTest, NanInAQueryStaysInItsRow) {
  for (DType dtype : kReals) {
    const Case c{dtype, 1, 80, 80, 1, 1, 16};
    const Inputs in = inputs_of(c);
    const std::vector<float> nan(static_cast<std::size_t>(c.head_dim),
                                 std::numeric_limits<float>::quiet_NaN());
    reference_->copy(upload(*reference_, nan, {1, c.head_dim}, dtype), in.q.slice(33, 1));
    const Results found = run(c, in);
    for (std::int64_t i = 0; i < c.query_len * c.head_dim; ++i) {
      EXPECT_EQ(std::isnan(found.out[i]), i / c.head_dim == 33) << name_of(dtype) << " " << i;
      EXPECT_EQ(std::isnan(found.dq[i]), i / c.head_dim == 33) << name_of(dtype) << " " << i;
    }
  }
}

TEST_F(CudaAttentionTest, Warpgroups) {
  expect_near_reference(of_warpgroups(1, 1, 1, 1, 1, 64));
  expect_near_reference(of_warpgroups(1, 65, 65, 2, 1, 8));
  expect_near_reference(of_warpgroups(1, 129, 150, 1, 1, 128, 37));
}

// Few tiles of keys: their queries are dealt to several blocks, and some of those get none.
TEST_F(CudaAttentionTest, PartsOfQueriesOfWarpgroups) {
  const Case c = of_warpgroups(1, 70, 150, 8, 1, 40, 60);
  EXPECT_EQ(cuda::key_gradient_parts(shape_of(c)), 4);
  expect_near_reference(c);
  expect_near_reference(of_warpgroups(1, 40, 70, 4, 1, 128));
}

TEST(CudaAttentionParts, FillTheChipWhereTilesAreFew) {
  EXPECT_EQ(cuda::key_gradient_parts({12, 2048, 2048, 32, 8, 64, 1}), 1);  // 768 blocks
  EXPECT_EQ(cuda::key_gradient_parts({4, 2048, 2048, 16, 4, 128, 1}), 1);  // 128 blocks
  EXPECT_EQ(cuda::key_gradient_parts({1, 2048, 2048, 16, 4, 128, 1}), 4);  // 32 blocks
  EXPECT_EQ(cuda::key_gradient_parts({1, 512, 512, 12, 3, 64, 1}), 5);     // 6 blocks of 20 steps
  EXPECT_EQ(cuda::key_gradient_parts({1, 1, 1, 1, 1, 64, 1}), 1);
}

TEST_F(SlowCudaAttentionTest, WarpgroupsOfAnyLengthGroupAndHeadSize) {
  expect_near_reference(of_warpgroups(2, 150, 150, 4, 2, 128, 37));
  expect_near_reference(of_warpgroups(1, 300, 410, 1, 1, 40, 150));  // three tiles: a pair and one
  expect_near_reference(of_warpgroups(1, 70, 70, 12, 3, 64));
  expect_near_reference(of_warpgroups(1, 40, 200, 16, 4, 96));
  expect_near_reference(of_warpgroups(1, 128, 128, 1, 1, 72, 64));
  expect_near_reference(of_warpgroups(1, 1, 300, 2, 1, 32));
}

TEST_F(SlowCudaAttentionTest, WarpgroupsAndFirstKeysInAnyOrder) {
  const Case c = of_warpgroups(2, 140, 270, 2, 1, 64);
  Inputs in = inputs_of(c);
  in.first_key = first_keys(
      c, [](std::int64_t position) { return position * 7919 % (position + 1) / 2 + position % 3; });
  expect_near_reference(c, in);
}

TEST_F(SlowCudaAttentionTest, OneQueryOfWarpgroupsGivesTheRowOfTheWhole) {
  const Case whole = of_warpgroups(1, 260, 260, 2, 1, 64);
  const Inputs all = inputs_of(whole);
  const Results results = run(whole, all);
  for (std::int64_t position : {0, 127, 128, 259}) {
    const Case one = of_warpgroups(1, 1, position + 1, 2, 1, 64);
    const Results found = run(one, {all.q.slice(position, 1),
                                    all.k.slice(0, position + 1),
                                    all.v.slice(0, position + 1),
                                    all.dout.slice(position, 1),
                                    {}});
    EXPECT_TRUE(std::equal(found.out.begin(), found.out.end(), results.out.begin() + position * 2 * 64))
        << "position " << position;
  }
}

// What a row does not see is multiplied by 0 in tiles, and 0 times NaN is NaN: such rows are computed again.
TEST_F(CudaAttentionTest, SlowNanReachesOnlyRowsThatSeeIt) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (Case c :
       {Case{DType::f32, 1, 100, 100, 2, 1, 16, 40}, Case{DType::bf16, 1, 100, 100, 2, 1, 16, 40, false, 1},
        Case{DType::bf16, 1, 100, 100, 2, 1, 40, 40, true, 2}, of_warpgroups(1, 100, 100, 2, 1, 64, 40),
        of_warpgroups(1, 100, 100, 4, 1, 64, 40)}) {
    const Inputs in = inputs_of(c);
    const auto poison = [&](const Tensor& matrix, std::int64_t row, float value) {
      const std::vector<float> values(static_cast<std::size_t>(matrix.cols()), value);
      reference_->copy(upload(*reference_, values, {1, matrix.cols()}, c.dtype), matrix.slice(row, 1));
    };
    poison(in.v, 20, kNan);
    poison(in.v, 70, kInfinity);
    poison(in.k, 30, kNan);
    poison(in.dout, 95, kNan);
    Results wanted = expected(c, in), found = run(c, in);
    const float bound = c.dtype == DType::f32 ? kF32Bound : kBf16Bound;
    for (const auto result : {&Results::out, &Results::lse, &Results::dq, &Results::dk, &Results::dv}) {
      std::vector<float>&of_reference = wanted.*result, &ours = found.*result;
      std::size_t finite = 0;
      for (std::size_t i = 0; i < ours.size(); ++i) {
        ASSERT_EQ(std::isfinite(ours[i]), std::isfinite(of_reference[i])) << describe(c) << " element " << i;
        finite += std::isfinite(ours[i]);
        if (!std::isfinite(ours[i])) ours[i] = of_reference[i] = 0;
      }
      EXPECT_GT(finite, 0u);
      EXPECT_LE(testing::relative_error(ours, of_reference), bound) << describe(c);
    }
  }
}

TEST_F(CudaAttentionTest, LseMayBeAbsentInForward) {
  const Case c{DType::bf16, 1, 10, 10, 2, 1, 8};
  const Inputs in = inputs_of(c);
  const Tensor out = allocate(c, in.q.rows(), in.q.cols());
  cuda::launch_attention(call_of(shape_of(c), in, out, {}), {});
  EXPECT_EQ(download(*reference_, out), run(c, in).out);
}

TEST_F(CudaAttentionTest, StoresStayInsideTheirMatrices) {
  for (DType dtype : kReals) {
    const Case c{dtype, 1, 67, 67, 2, 1, 20};
    const Inputs in = inputs_of(c);
    const Tensor wide = reference_->allocate(dtype, {c.query_len + 2, 48});
    reference_->fill(wide, 7);
    const Tensor lse = reference_->allocate(DType::f32, {c.query_len, c.heads});
    cuda::launch_attention(call_of(shape_of(c), in, wide.slice(1, c.query_len).columns(3, 40), lse), {});
    const std::vector<float> values = download(*reference_, wide);
    for (std::int64_t i = 0; i < wide.elements(); ++i) {
      const std::int64_t row = i / 48, column = i % 48;
      const bool inside = row >= 1 && row <= c.query_len && column >= 3 && column < 43;
      if (!inside) {
        EXPECT_EQ(values[i], 7) << name_of(dtype) << " row " << row << " column " << column;
      }
    }
  }
}

TEST_F(CudaAttentionTest, EmptyShapesAreNoWork) {
  for (DType dtype : kReals) {
    expect_near_reference({dtype, 0, 5, 5, 2, 1, 16});
    expect_near_reference({dtype, 1, 0, 0, 2, 1, 16});
    expect_near_reference({dtype, 1, 0, 9, 2, 1, 16});  // keys without queries: dk and dv are zeros
  }
}

TEST(CudaAttentionLimits, WideHeadsAreRefused) {
  cuda::check_device_attention({1, 4, 4, 2, 1, 256, 1});
  try {
    cuda::check_device_attention({1, 4, 4, 2, 1, 257, 1});
    FAIL() << "a head of 257 was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_NE(std::string(error.what()).find("head_dim is 257, expected at most 256"), std::string::npos);
  }
}

}  // namespace
}  // namespace quaver
