#include "ops/pointwise_support.h"

namespace quaver::testing {
namespace {

class PointwiseCast : public ::testing::TestWithParam<MatrixCase> {};
INSTANTIATE_TEST_SUITE_P(Sizes, PointwiseCast, ::testing::ValuesIn(matrix_cases()));

TEST_P(PointwiseCast, EqualsTheReferenceInEveryForm) {
  const Tensor x = special_matrix(GetParam(), 1);
  for (DType format : {DType::e4m3, DType::e5m2}) {
    for (bool values : {false, true}) {
      expect_equals_reference([&](Backend& backend) {
        const Output output = full_output(GetParam(), x.cols(), format, 1.7f, values);
        backend.cast(x, output);
        return tensors_of(output);
      });
    }
  }
}

TEST_P(PointwiseCast, LeavesNoTraceWithoutAmaxAndCounters) {
  const Tensor x = special_matrix(GetParam(), 2);
  expect_equals_reference([&](Backend& backend) {
    Output output = full_output(GetParam(), x.cols(), DType::e4m3, 0.3f, false);
    output.quantizer.amax = output.quantizer.counters = output.quantized.transposed = Tensor();
    backend.cast(x, output);
    return std::vector{output.quantized.bytes, output.quantized.scale_inv};
  });
}

TEST_P(PointwiseCast, CopyKeepsAllBits) {
  const Tensor x = special_matrix(GetParam(), 3);
  expect_equals_reference([&](Backend& backend) {
    const Tensor out = empty_matrix(GetParam());
    backend.copy(x, out);
    EXPECT_EQ(bytes_of(out) == bytes_of(x), true);
    return std::vector{out};
  });
}

TEST(PointwiseCastSpecial, ScalesAtTheEdgesOfTheRange) {
  const MatrixCase c{5, 33, DType::f32, false};
  const Tensor x = special_matrix(c, 4);
  for (float scale : {std::numeric_limits<float>::max(), 1e-38f, 2.93873588e-39f, 448.0f}) {
    expect_equals_reference([&](Backend& backend) {
      const Output output = full_output(c, 33, DType::e5m2, scale, false);
      backend.cast(x, output);
      return tensors_of(output);
    });
  }
}

/// One remarkable number in a group of four, at each place of it, and around the tie between zero and the smallest number.
TEST(PointwiseCastSpecial, CountsWhatRoundsToZeroWhereverItStands) {
  for (DType type : {DType::f32, DType::bf16}) {
    for (DType format : {DType::e4m3, DType::e5m2}) {
      const float tie = format == DType::e4m3 ? 0x1p-10f : 0x1p-17f;
      for (int place = 0; place < 8; ++place) {
        const MatrixCase c{6, 24, type, false};
        const Tensor x = empty_matrix(c);
        reference().fill(x, 1);
        for (float small : {tie, -tie, tie * 0x1.02p0f, tie * 0x1.fep-1f, 0.0f, 1e-30f}) {
          const std::int64_t index = 24 * (place % 6) + 8 * (place % 3) + place;
          if (type == DType::f32) {
            x.data<float>()[index] = small;
          } else {
            x.data<bf16>()[index] = to_bf16(small);
          }
          expect_equals_reference([&](Backend& backend) {
            const Output output = full_output(c, 24, format, 1, false);
            backend.cast(x, output);
            return tensors_of(output);
          });
        }
      }
    }
  }
}

TEST(PointwiseConvert, EqualsTheReference) {
  for (std::int64_t size : {1, 3, 15, 16, 17, 257, 100003}) {
    for (DType from : {DType::f32, DType::bf16}) {
      const Tensor x = special_matrix({1, size, from, false}, 5).reshape({size});
      for (DType to : {DType::f32, DType::bf16}) {
        expect_equals_reference([&](Backend& backend) {
          const Tensor out = backend.allocate(to, {size});
          backend.convert(x, out);
          return std::vector{out};
        });
      }
    }
  }
}

TEST(PointwiseFill, EqualsTheReferenceForEveryType) {
  for (DType dtype : {DType::f32, DType::bf16, DType::i32, DType::i64, DType::u8}) {
    expect_equals_reference([&](Backend& backend) {
      const Tensor out = backend.allocate(dtype, {70001});
      backend.fill(out, 3.0);
      return std::vector{out};
    });
  }
}

TEST(PointwiseFill, NormalNumbersDependOnSeedStreamAndIndexAlone) {
  for (std::int64_t size : {1, 17, 10007}) {
    expect_equals_reference([&](Backend& backend) {
      const Tensor out = backend.allocate(DType::f32, {size});
      backend.fill_normal(out, 0.25f, 0.02f, 42, 5);
      return std::vector{out};
    });
  }
}

TEST(PointwiseUpdateScales, EqualsTheReference) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float staged[] = {0.0f, 1.0f, 3.0f, 1e-37f, 1e38f, kInfinity, std::nanf(""), 448.0f};
  for (AmaxCompute algo : {AmaxCompute::max, AmaxCompute::most_recent}) {
    for (std::int64_t length : {1, 2, 4, 1024}) {
      expect_equals_reference([&](Backend& backend) {
        std::vector<ScaleUpdate> updates;
        std::vector<Tensor> results;
        for (int i = 0; i < 200; ++i) {  // several pieces of work
          ScalingSlot slot{backend.allocate(DType::f32, {1}), random_vector(length, i), {}, {}};
          backend.fill(slot.scale, 1.0);
          slot.amax_history.data<float>()[0] = staged[i % std::size(staged)];
          updates.push_back({slot, i % 3 == 0 ? 57344.0f : 448.0f, i % 4 - 1, algo});
          results.insert(results.end(), {slot.scale, slot.amax_history});
        }
        backend.update_scales(updates);
        backend.update_scales(updates);
        return results;
      });
    }
  }
}

TEST(PointwiseLevels, AnUnknownLevelIsRefusedWithTheSupportedNames) {
  const IsaScope scope("quantum");
  try {
    make_backend("cpu");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_NE(std::string(error.what()).find("baseline"), std::string::npos) << error.what();
  }
}

TEST(PointwiseLevels, TheNamedLevelIsUsed) {
  for (cpu::Level level : cpu::supported_levels()) {
    const IsaScope scope{std::string(name_of(level))};
    EXPECT_NE(make_backend("cpu", 1)->describe().find(name_of(level)), std::string::npos);
  }
}

}  // namespace
}  // namespace quaver::testing
