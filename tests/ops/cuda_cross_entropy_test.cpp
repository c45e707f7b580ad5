#include <gtest/gtest.h>

#include "ops/cuda/cross_entropy_once.cuh"
#include "ops/pointwise_support.h"

namespace quaver::testing {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

cuda::ChipSize chip_of(int multiprocessors) {
  return {multiprocessors, 227 << 10};
}

/// A backend of the CUDA kernels, and the columns of logits that it takes in one pass.
struct OnePassDevice {
  std::string name;
  cuda::ChipSize chip;
  std::int64_t cols;
};
void PrintTo(const OnePassDevice& device, std::ostream* out) {
  *out << device.name << " with " << device.cols << " columns";
}

class OnePass : public ::testing::TestWithParam<OnePassDevice> {
 protected:
  static constexpr std::int64_t kRows = cuda::kEnoughRows + cuda::kRunBytes;
  const std::shared_ptr<Backend> backend = make_test_backend(GetParam().name);
  const MatrixCase size{kRows, GetParam().cols, DType::bf16, false};
  const Tensor logits = random_matrix(size, 1, 3.0f), targets = indices_below(kRows, GetParam().cols, 2);
  float gradient_scale = 0.125f;

  void SetUp() override {
    if (!suits_devices({logits})) GTEST_SKIP() << "too slow under the address sanitizer";
  }
  void set_target(std::int64_t row, std::int64_t target) {
    targets.data<std::int32_t>()[row] = static_cast<std::int32_t>(target);
  }
  void fill_row(std::int64_t row, float value) {
    for (std::int64_t n = 0; n < size.cols; ++n) set(logits, row, n, value);
  }
  std::vector<Tensor> results(DType format, float scale, bool values) {
    Output output = full_output(size, size.cols, format, scale, values);
    EXPECT_NE(cuda::suits_one_pass(logits, gradient_scale, output, GetParam().chip), values);
    const Tensor losses = random_vector(kRows, 3);
    backend->cross_entropy(logits, targets, gradient_scale, losses, output);
    output.values = {};
    std::vector<Tensor> tensors = tensors_of(output);
    tensors.push_back(losses);
    finish(*backend);
    return tensors;
  }
  /// Two passes also give the gradient in BF16.
  void expect_same_as_two_passes(DType format, float scale) {
    const std::vector<Tensor> one = results(format, scale, false), two = results(format, scale, true);
    for (std::size_t i = 0; i < one.size(); ++i) {
      EXPECT_EQ(bytes_of(one[i]) == bytes_of(two[i]), true)
          << name_of(format) << ", result " << i << differences(one[i], two[i]);
    }
  }
};

std::vector<OnePassDevice> one_pass_devices() {
  std::vector<OnePassDevice> devices;
  // Of 6 strips three are a block's; 8 fill all warps; one part is full, one is not.
  for (const std::int64_t cols : {384, 448, 512}) devices.push_back({"emulation", chip_of(2), cols});
  for (const std::string& name : test_backends()) {
    if (name == "cuda") devices.push_back({name, chip_of(132), 32768});
  }
  return devices;
}
INSTANTIATE_TEST_SUITE_P(Devices, OnePass, ::testing::ValuesIn(one_pass_devices()));

TEST_P(OnePass, GivesTheBitsOfTwo) {
  for (std::int64_t row = 2; row < kRows; row += 5) set_target(row, -1);
  for (const DType format : {DType::e4m3, DType::e5m2}) expect_same_as_two_passes(format, 37.25f);
}

// One confident in a wrong class: its gradient is as large as the target's, and both saturate.
TEST_P(OnePass, CountsWhatSaturatesAndWhatUnderflows) {
  for (std::int64_t row = 0; row < kRows; row += 3) set(logits, row, (row * 7 + 1) % size.cols, 60.0f);
  for (const float scale : {0x1p-4f, 0x1p14f, 0x1p24f}) expect_same_as_two_passes(DType::e5m2, scale);
}

TEST_P(OnePass, RowsWithNanAndInfinity) {
  constexpr float kLowest = -0x1.FEp127f;  // of BF16: a mask
  for (std::int64_t first = 0; first < 60; first += 30) {
    set(logits, first, 5, kNan);
    set(logits, first + 1, 70, cuda::kInfinity);
    set(logits, first + 2, 3, -cuda::kInfinity);
    fill_row(first + 3, -cuda::kInfinity);
    fill_row(first + 4, kNan);
    fill_row(first + 5, kLowest);
    set(logits, first + 5, 9, 1.5f);
    fill_row(first + 6, 1000);
    set(logits, first + 6, 10, 1001);
    fill_row(first + 7, 0x1p127f);
  }
  for (std::int64_t row = 30; row < 60; ++row) set_target(row, -1);
  for (std::int64_t row = 0; row < 8; ++row) set_target(row, row % 2 == 0 ? size.cols - 1 : 64);
  expect_same_as_two_passes(DType::e5m2, 0x1p10f);
}

TEST_P(OnePass, ATargetOutsideTheVocabularyIsRefused) {
  set_target(kRows - 1, size.cols);
  EXPECT_THROW(results(DType::e5m2, 1, false), Error);
}

TEST(OnePassSuits, ShapesAndResults) {
  const auto suits = [](std::int64_t rows, std::int64_t cols, const cuda::ChipSize& chip) {
    const MatrixCase size{rows, cols, DType::bf16, false};
    return cuda::suits_one_pass(empty_matrix(size), 1, full_output(size, cols, DType::e5m2, 1, false), chip);
  };
  EXPECT_TRUE(suits(1024, 512, chip_of(2)));
  EXPECT_FALSE(suits(1024 + 32, 512, chip_of(2))) << "part of a run of transposed bytes";
  EXPECT_FALSE(suits(1024, 512 - 8, chip_of(2))) << "part of a strip";
  EXPECT_FALSE(suits(1024, 512, chip_of(1))) << "more strips than warps";
  EXPECT_FALSE(suits(1024, 320, chip_of(2))) << "3 of 8 warps without a strip";
  EXPECT_FALSE(suits(cuda::kEnoughRows - cuda::kRunBytes, 512, chip_of(2)));
  EXPECT_FALSE(suits(1024, 512, {2, 99 << 10})) << "the shared memory of sm_89";
}

TEST(OnePassSuits, NothingButFp8BytesWithTheirTraces) {
  const MatrixCase size{1024, 512, DType::bf16, false};
  const Tensor logits = empty_matrix(size);
  const auto suits = [&](float gradient_scale, const std::function<void(Output&)>& change) {
    Output output = full_output(size, size.cols, DType::e5m2, 1, false);
    change(output);
    return cuda::suits_one_pass(logits, gradient_scale, output, chip_of(2));
  };
  const auto nothing = [](Output&) {};
  EXPECT_TRUE(suits(1, nothing));
  EXPECT_FALSE(suits(0, nothing));
  EXPECT_FALSE(suits(-1, nothing));
  EXPECT_FALSE(suits(1, [](Output& output) { output.quantizer.counters = {}; }));
  EXPECT_FALSE(suits(1, [](Output& output) { output.quantizer.amax = {}; }));
  EXPECT_FALSE(suits(1, [](Output& output) { output.quantized.transposed = {}; }));
  EXPECT_FALSE(suits(1, [&](Output& output) { output.values = empty_matrix(size); }));
  EXPECT_FALSE(suits(1, [](Output& output) { output = {}; }));
}

}  // namespace
}  // namespace quaver::testing
