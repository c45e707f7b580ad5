/// The choice of a library's attention, and the calls that it gets against the reference. The emulated library computes with
/// our own kernels, so the emulation tests how calls reach a library; on a device with cuDNN they reach that.
#include "ops/cuda/attention_library.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "ops/attention_support.h"
#include "quaver/backend.h"
#include "support/errors.h"
#include "support/test_backends.h"

namespace quaver {
namespace {

/// A call that suits, on memory that is never read.
struct Suiting {
  alignas(16) char memory[32] = {};
  float sums = 0;
  cuda::AttentionMatrix matrix{memory, 64};
  cuda::AttentionCall call{.shape = {2, 256, 256, 4, 2, 16, 0.25f},
                           .q = matrix,
                           .k = matrix,
                           .v = matrix,
                           .out = matrix,
                           .lse = &sums,
                           .lse_stride = 4};
  cuda::AttentionGradients gradients{matrix, matrix, matrix, matrix};

  bool forward() const { return suits_attention_library(call, nullptr); }
  bool backward() const { return suits_attention_library(call, &gradients); }
};

TEST(AttentionLibrary, TakesWholeSequencesOfBf16WithoutBorders) {
  const Suiting suiting;
  EXPECT_TRUE(suiting.forward());
  EXPECT_TRUE(suiting.backward());
  const auto refused = [](const auto& change) {
    Suiting changed;
    change(changed);
    return !changed.forward() && !changed.backward();
  };
  const std::int32_t border = 0;
  EXPECT_TRUE(refused([](Suiting& s) { s.call.dtype = DType::f32; }));
  EXPECT_TRUE(refused([&](Suiting& s) { s.call.first_key = &border; }));
  EXPECT_TRUE(refused([](Suiting& s) { s.call.shape.query_len = 128; }));  // a cache
  EXPECT_TRUE(refused([](Suiting& s) { s.call.shape.query_len = s.call.shape.key_len = 200; }));
  EXPECT_TRUE(refused([](Suiting& s) { s.call.shape.query_len = s.call.shape.key_len = 0; }));
  EXPECT_TRUE(refused([](Suiting& s) { s.call.shape.batch = 0; }));
  EXPECT_TRUE(refused([](Suiting& s) { s.call.shape.head_dim = 20; }));
  EXPECT_TRUE(refused([](Suiting& s) { s.call.shape.head_dim = 136; }));
  EXPECT_TRUE(refused([](Suiting& s) { s.call.k.stride = 68; }));
  EXPECT_TRUE(refused([](Suiting& s) { s.call.v.data = s.memory + 8; }));
}

TEST(AttentionLibrary, BackwardAlsoNeedsTheSumsAndAlignedGradients) {
  const auto only_forward = [](const auto& change) {
    Suiting changed;
    change(changed);
    return changed.forward() && !changed.backward();
  };
  EXPECT_TRUE(only_forward([](Suiting& s) { s.call.lse = nullptr; }));
  EXPECT_TRUE(only_forward([](Suiting& s) { s.gradients.dk.stride = 65; }));
  EXPECT_TRUE(only_forward([](Suiting& s) { s.gradients.dout.data = s.memory + 2; }));
}

TEST(AttentionLibrary, TheEnvironmentChooses) {
  using cuda::AttentionChoice;
  EXPECT_EQ(cuda::attention_choice(nullptr), AttentionChoice::automatic);
  EXPECT_EQ(cuda::attention_choice(""), AttentionChoice::automatic);
  EXPECT_EQ(cuda::attention_choice("auto"), AttentionChoice::automatic);
  EXPECT_EQ(cuda::attention_choice("own"), AttentionChoice::own);
  EXPECT_EQ(cuda::attention_choice("cudnn"), AttentionChoice::library);
  const std::string message = error_message(ErrorKind::usage, [] { cuda::attention_choice("flash"); });
  EXPECT_NE(message.find("'flash', expected auto, own or cudnn"), std::string::npos) << message;
}

struct Results {
  std::vector<float> out, lse, dq, dk, dv;
  bool operator==(const Results&) const = default;
};

struct Operands {
  Tensor q, k, v, dout, first_key;
};

/// Columns of a wider matrix, as projections give them; rows lie on 16 bytes.
Tensor columns_of_wider(Backend& backend, std::int64_t rows, std::int64_t cols) {
  return backend.allocate(DType::bf16, {rows, cols + 16}).columns(8, cols);
}

Tensor normal(Backend& backend, std::int64_t rows, std::int64_t cols, std::uint64_t stream) {
  const Tensor values = backend.allocate(DType::f32, {rows, cols}),
               rounded = backend.allocate(DType::bf16, {rows, cols}),
               matrix = columns_of_wider(backend, rows, cols);
  backend.fill_normal(values, 0, 1, 3, stream);
  backend.convert(values, rounded);
  backend.copy(rounded, matrix);
  return matrix;
}

Results run(Backend& backend, const AttentionShape& shape, const Operands& in, int times) {
  const auto like = [&](const Tensor& t) { return columns_of_wider(backend, t.rows(), t.cols()); };
  const Tensor out = like(in.q), dq = like(in.q), dk = like(in.k), dv = like(in.v),
               lse = backend.allocate(DType::f32, {in.q.rows(), shape.heads});
  for (int i = 0; i < times; ++i) {
    backend.run_repeated([&] {
      backend.attention(shape, in.q, in.k, in.v, in.first_key, out, lse);
      backend.attention_backward(shape, in.dout, in.q, in.k, in.v, in.first_key, out, lse, dq, dk, dv);
    });
  }
  return {download(backend, out), download(backend, lse), download(backend, dq), download(backend, dk),
          download(backend, dv)};
}

// As in cuda_attention_test.cpp: roundings of 2^-9 of results, probabilities, and the gradients of scores; lse is FP32.
constexpr float kBf16Bound = 1.7e-2f, kF32Bound = 1e-5f;

class LibraryAttentionTest : public ::testing::TestWithParam<std::string> {
 protected:
  /// `document`: length of the documents; 0: no borders.
  void expect_near_reference(std::int64_t batch, std::int64_t length, std::int64_t heads,
                             std::int64_t kv_heads, std::int64_t head_dim, std::int64_t document = 0) {
    const AttentionShape shape{
        batch, length, length, heads, kv_heads, head_dim, 1 / std::sqrt(static_cast<float>(head_dim))};
    const std::int64_t rows = batch * length;
    Operands in{normal(*reference_, rows, heads * head_dim, 1),
                normal(*reference_, rows, kv_heads * head_dim, 2),
                normal(*reference_, rows, kv_heads * head_dim, 3),
                normal(*reference_, rows, heads * head_dim, 4),
                {}};
    if (document > 0) {
      std::vector<std::int32_t> keys;
      for (std::int64_t row = 0; row < rows; ++row)
        keys.push_back(static_cast<std::int32_t>(row % length / document * document));
      in.first_key = upload(*reference_, keys, {rows});
    }
    // Three times the same: listed, recorded, replayed.
    const Results expected = run(*reference_, shape, in, 1), found = run(*backend_, shape, in, 3);
    const std::string what = fmt::format("{}: {} x {}, heads {}/{} of {}, documents {}", backend_->describe(),
                                         batch, length, heads, kv_heads, head_dim, document);
    EXPECT_LE(testing::relative_error(found.out, expected.out), kBf16Bound) << what;
    EXPECT_LE(testing::relative_error(found.lse, expected.lse), kF32Bound) << what;
    EXPECT_LE(testing::relative_error(found.dq, expected.dq), kBf16Bound) << what;
    EXPECT_LE(testing::relative_error(found.dk, expected.dk), kBf16Bound) << what;
    EXPECT_LE(testing::relative_error(found.dv, expected.dv), kBf16Bound) << what;
    EXPECT_EQ(run(*backend_, shape, in, 1), found) << "other bits in a second run of " << what;
  }

  std::shared_ptr<Backend> backend_ = testing::make_test_backend(GetParam());
  std::shared_ptr<Backend> reference_ = testing::make_shared_reference();
};

TEST_P(LibraryAttentionTest, SlowWholeSequencesAreNearTheReference) {
  expect_near_reference(2, 128, 2, 1, 8);
  expect_near_reference(1, 128, 2, 2, 40);
  if (GetParam() != "cuda") return;  // only there a library has tiles; the reference takes seconds
  expect_near_reference(2, 256, 2, 1, 64);
  expect_near_reference(1, 384, 2, 1, 128);
  expect_near_reference(1, 256, 3, 3, 96);
}

TEST_P(LibraryAttentionTest, SoAreCallsThatALibraryDoesNotGet) {
  expect_near_reference(1, 128, 2, 1, 16, 50);
  expect_near_reference(1, 130, 2, 1, 16);
}

INSTANTIATE_TEST_SUITE_P(Backends, LibraryAttentionTest, ::testing::ValuesIn(testing::test_backends()),
                         [](const auto& instance) { return instance.param; });

}  // namespace
}  // namespace quaver
