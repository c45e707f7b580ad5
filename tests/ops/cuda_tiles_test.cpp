#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "ops/cuda/produce.cuh"
#include "quaver/error.h"

namespace quaver::cuda {
namespace {

/// x, -2 x and 3 x: three results of one operand.
template <int kResults>
struct Multiples {
  Matrix<bf16> x;
  template <int N>
  __device__ Pack<bf16, N> read(std::int64_t m, std::int64_t n) const {
    return x.template pack<N>(m, n);
  }
  template <int N>
  __device__ void operator()(std::int64_t, std::int64_t, const Pack<bf16, N>& read,
                             float (&results)[kResults][N]) const {
    constexpr float kFactors[] = {1, -2, 3};
    float values[N];
    widen(read, values);
    for (int o = 0; o < kResults; ++o) {
      for (int i = 0; i < N; ++i) results[o][i] = kFactors[o] * values[i];
    }
  }
};

/// What a result leaves behind.
struct Produced {
  std::vector<bf16> values;
  std::vector<std::uint8_t> bytes, transposed;
  float scale = 2, scale_inv = 0, amax = 0;
  std::vector<unsigned long long> counters = std::vector<unsigned long long>(kCastCounters);

  Produced(std::int64_t rows, std::int64_t cols)
      : values(static_cast<std::size_t>(rows * cols)),
        bytes(values.size(), 0xEE),
        transposed(values.size(), 0xEE) {}
  Sink<bf16> sink(std::int64_t rows, std::int64_t cols) {
    Sink<bf16> sink{};
    sink.values = {values.data(), cols};
    sink.bytes = {bytes.data(), cols};
    sink.transposed = {transposed.data(), rows};
    sink.scale_inv = &scale_inv;
    sink.scale = &scale;
    sink.amax = &amax;
    sink.counters = counters.data();
    sink.format = Fp8::e4m3;
    sink.transposed_run = run_of(sink.transposed);
    sink.writes = writes_of(sink);
    return sink;
  }
};

template <int N, int kResults>
std::vector<Produced> produced(std::vector<bf16>& x, std::int64_t rows, std::int64_t cols,
                               std::int64_t blocks) {
  std::vector<Produced> results(kResults, Produced(rows, cols));
  std::array<Sink<bf16>, kResults> sinks{};
  for (int o = 0; o < kResults; ++o)
    sinks[static_cast<std::size_t>(o)] = results[static_cast<std::size_t>(o)].sink(rows, cols);
  const Multiples<kResults> multiples{{x.data(), cols}};
  launch("multiples", produce_tiles<N, kResults, bf16, Multiples<kResults>>, {blocks, kTileThreads}, nullptr,
         multiples, sinks, rows, cols);
  return results;
}

std::vector<bf16> some_numbers(std::int64_t count) {
  std::vector<bf16> x(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = round_as<bf16>(
        i % 97 == 5 ? 0.0f : std::sin(static_cast<float>(i)) * std::exp2(static_cast<float>(i % 23) - 12.0f));
  return x;
}

/// The same, element by element.
void expect_casts(const Produced& one, const std::vector<bf16>& x, float factor, std::int64_t rows,
                  std::int64_t cols) {
  CastTrace trace;
  const CastScale scale = cast_scale(Fp8::e4m3, one.scale);
  std::size_t wrong = 0;
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t n = 0; n < cols; ++n) {
      const auto i = static_cast<std::size_t>(m * cols + n), turned = static_cast<std::size_t>(n * rows + m);
      const bf16 value = round_as<bf16>(factor * as_float(x[i]));
      const std::uint8_t byte = trace.cast(scale, as_float(value));
      wrong += one.values[i].bits != value.bits || one.bytes[i] != byte || one.transposed[turned] != byte;
    }
  }
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(one.amax, trace.amax);
  EXPECT_EQ(one.scale_inv, 0.5f);
  EXPECT_EQ(one.counters[kCastElements], x.size());
  EXPECT_EQ(one.counters[kCastZeros], trace.zeros);
  EXPECT_EQ(one.counters[kCastUnderflowed], trace.zero_bytes_x128 / 128 - trace.zeros);
  EXPECT_EQ(one.counters[kCastSaturated], trace.large & 0xFFFFu);
}

template <int N, int kResults>
void expect_multiples(std::int64_t rows, std::int64_t cols) {
  std::vector<bf16> x = some_numbers(rows * cols);
  for (const std::int64_t blocks :
       {std::int64_t{1}, std::int64_t{2}, std::int64_t{5}, tiles_of(rows, cols)}) {
    SCOPED_TRACE(::testing::Message() << rows << " x " << cols << ", " << blocks << " blocks");
    const auto results = produced<N, kResults>(x, rows, cols, blocks);
    constexpr float kFactors[] = {1, -2, 3};
    for (std::size_t o = 0; o < kResults; ++o) expect_casts(results[o], x, kFactors[o], rows, cols);
  }
}

/// Sizes that fill tiles, that end within one, within a thread's rows, and within 16 bytes of a transposed row.
TEST(CudaTiles, SlowBlocksOfSeveralResultsTakeManyTiles) {
  for (const auto& [rows, cols] : {std::pair(384, 128), std::pair(400, 200), std::pair(259, 72)}) {
    expect_multiples<kPack, 2>(rows, cols);
    expect_multiples<kPack, 3>(rows, cols);
    expect_multiples<1, 2>(rows, cols);
  }
  expect_multiples<1, 3>(131, 67);
}

TEST(CudaTiles, EveryTileHasABlockAndNoThreadCountsTooMany) {
  for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{4096}, std::int64_t{1} << 24}) {
    for (const std::int64_t cols : {std::int64_t{1}, std::int64_t{8192}}) {
      const std::int64_t tiles = tiles_of(rows, cols);
      EXPECT_EQ(produce_blocks<1>(rows, cols), tiles);
      const std::int64_t blocks = produce_blocks<2>(rows, cols);
      EXPECT_GE(blocks, 1);
      EXPECT_LE(blocks, tiles);
      EXPECT_LT(blocks_for(tiles, blocks) * kTileRows * kTileCols / kTileThreads, 65536);
    }
  }
}

TEST(CudaTiles, RowsThatNoIndexHoldsAreRefused) {
  const auto produce_rows = [](std::int64_t rows, std::int64_t cols) {
    produce<bf16, 1>("an operation", Identity<bf16>{}, {Output{}}, rows, cols, true, nullptr);
  };
  constexpr std::int64_t kTooMany = std::int64_t{1} << 31;
  EXPECT_THROW(produce_rows(kTooMany, 8), Error);
  EXPECT_THROW(produce_rows(8, kTooMany), Error);
  EXPECT_NO_THROW(produce_rows(0, 8));
}

}  // namespace
}  // namespace quaver::cuda
