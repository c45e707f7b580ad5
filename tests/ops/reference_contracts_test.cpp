/// What the operations refuse: every message names the operation and what was found.
#include "quaver/error.h"
#include "support/backend_test.h"
#include "support/errors.h"

namespace quaver::testing {
namespace {

class Contracts : public BackendTest {
 protected:
  Tensor real(std::int64_t rows, std::int64_t cols, DType dtype = DType::f32) {
    return backend->allocate(dtype, {rows, cols});
  }
  Tensor line(std::int64_t size, DType dtype = DType::f32) { return backend->allocate(dtype, {size}); }

  void expect_refused(const std::function<void()>& call, const std::vector<std::string>& parts) {
    const std::string message = error_message(ErrorKind::usage, call);
    for (const std::string& part : parts)
      EXPECT_TRUE(contains(message, part)) << "expected \"" << part << "\" in: " << message;
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, Contracts, every_backend(), backend_name);

TEST_P(Contracts, ProductsNameBothShapesOrTypes) {
  const auto product = [&](Gemm kind, const Tensor& a, const Tensor& b, const Tensor& bias,
                           const Tensor& out) { backend->gemm(kind, a, b, bias, false, out); };
  expect_refused([&] { product(Gemm::fprop, real(2, 3), real(4, 5), {}, real(2, 4)); },
                 {"fprop", "[2, 3]", "[4, 5]"});
  expect_refused([&] { product(Gemm::dgrad, real(2, 3), real(4, 5), {}, real(2, 5)); },
                 {"dgrad", "[2, 3]", "[4, 5]"});
  expect_refused([&] { product(Gemm::wgrad, real(2, 3), real(4, 5), {}, real(3, 5)); },
                 {"wgrad", "[2, 3]", "[4, 5]"});
  expect_refused([&] { product(Gemm::fprop, real(2, 3), real(4, 3), {}, real(4, 2)); },
                 {"fprop", "out", "[4, 2]", "[2, 4]"});
  expect_refused([&] { product(Gemm::fprop, real(2, 3), real(4, 3, DType::bf16), {}, real(2, 4)); },
                 {"fprop", "f32", "bf16"});
  expect_refused([&] { product(Gemm::dgrad, real(2, 3), real(3, 4), line(4), real(2, 4)); },
                 {"dgrad", "bias"});
  expect_refused([&] { product(Gemm::fprop, real(2, 3), real(4, 3), line(3), real(2, 4)); },
                 {"fprop", "bias", "[3]", "[4]"});
  expect_refused(
      [&] { product(Gemm::fprop, real(2, 3, DType::e4m3), real(4, 3, DType::e4m3), {}, real(2, 4)); },
      {"fprop", "scale_inv"});
}

TEST_P(Contracts, GatherFillsItsDestination) {
  const std::vector<Tensor> sources{line(2), line(3)};
  expect_refused([&] { backend->gather(sources, line(4)); }, {"gather", "2 contiguous", "[3]"});
}

TEST_P(Contracts, RowOperationsNameTheOperand) {
  const Output y{real(2, 3), {}, {}};
  expect_refused([&] { backend->rms_norm(real(2, 3), line(4), 1, y, {}); },
                 {"rms_norm", "gain", "[4]", "[3]"});
  expect_refused([&] { backend->rms_norm(real(2, 3, DType::bf16), line(3), 1, y, {}); },
                 {"rms_norm", "y", "f32", "bf16"});
  expect_refused([&] { backend->rms_norm(real(2, 3), line(3), 1, {}, {}); }, {"rms_norm", "y"});
  expect_refused(
      [&] {
        backend->rms_norm({real(2, 3), real(2, 4), real(2, 3)}, line(3), 1, y, {});
      },
      {"rms_norm", "addend", "[2, 4]", "[2, 3]"});
  expect_refused(
      [&] {
        backend->rms_norm({real(2, 3), real(2, 3), {}}, line(3), 1, y, {});
      },
      {"rms_norm", "sum", "absent"});
  expect_refused([&] { backend->add(real(2, 3), real(3, 2), real(2, 3)); }, {"add", "[3, 2]", "[2, 3]"});
  expect_refused([&] { backend->activation(Activation::swiglu, {}, real(2, 3), y); }, {"activation", "gate"});
  expect_refused([&] { backend->sum_rows(real(2, 3), line(2)); }, {"sum_rows", "[2]", "[3]"});
}

TEST_P(Contracts, LayerNormBackwardNeedsItsMean) {
  expect_refused(
      [&] {
        backend->layer_norm_backward(real(2, 3), real(2, 3), line(3), {}, line(2), false,
                                     {real(2, 3), {}, {}}, line(3), line(3));
      },
      {"layer_norm_backward", "mean"});
}

TEST_P(Contracts, ANormAddsToValuesThatAreThere) {
  const Output fp8{{}, {backend->allocate(DType::e5m2, {2, 3}), {}, line(1)}, {DType::e5m2, line(1), {}, {}}};
  expect_refused(
      [&] { backend->rms_norm_backward(real(2, 3), real(2, 3), line(3), line(2), true, fp8, line(3)); },
      {"rms_norm_backward", "dx", "absent"});
}

TEST_P(Contracts, UntouchedHeadsAreOfBackwardAndOfRotations) {
  HeadTransform transform;
  transform.heads = transform.untouched = 1;
  transform.head_dim = 3;
  transform.gain = line(3);
  expect_refused([&] { backend->transform_heads(transform, real(2, 6), {}, real(2, 6)); },
                 {"transform_heads", "untouched"});
  transform.norm = QkNorm::pre_rope;
  expect_refused(
      [&] {
        backend->transform_heads_backward(transform, real(2, 6), real(2, 6), {}, {real(2, 6), {}, {}},
                                          line(3));
      },
      {"transform_heads_backward", "untouched"});
}

TEST_P(Contracts, AbsentTablesAreUsageErrors) {
  expect_refused([&] { backend->embedding(line(2, DType::i32), {}, {}, {}, real(2, 3)); },
                 {"embedding", "table"});
}

TEST_P(Contracts, FillAndConvertRefuseFp8) {
  expect_refused([&] { backend->fill(line(4, DType::e4m3), 0); }, {"fill"});
  expect_refused([&] { backend->convert(line(4, DType::e4m3), line(4)); }, {"convert", "e4m3"});
}

TEST_P(Contracts, NormalNumbersAreFp32Only) {
  const Tensor values = backend->allocate(DType::bf16, {7});
  const std::string message =
      error_message(ErrorKind::usage, [&] { backend->fill_normal(values, 0, 1, 1, 1); });
  for (const char* part : {"fill_normal", "bf16", "f32"}) EXPECT_TRUE(contains(message, part)) << message;
}

TEST(MakeBackend, AnUnknownNameListsThoseThereAre) {
  const std::string message = error_message(ErrorKind::usage, [] { make_backend("tpu"); });
  for (const char* part : {"tpu", "reference", "cpu", "cuda"}) EXPECT_TRUE(contains(message, part));
}

TEST(MakeBackend, CudaIsRefusedWithAdviceWhereItCannotRun) {
  if (why_no_cuda().empty()) GTEST_SKIP() << "there is a device";
  const std::string message = error_message(ErrorKind::usage, [] { make_backend("cuda"); });
  EXPECT_TRUE(contains(message, "backend: ") && contains(message, "\"cpu\"")) << message;
}

}  // namespace
}  // namespace quaver::testing
