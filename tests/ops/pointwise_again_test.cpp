/// Backward operations that write the result of their forward once more: on every backend the bits are those of the forward.
#include <functional>

#include "ops/pointwise_support.h"

namespace quaver::testing {
namespace {

/// An output as a backward writes it again: cast with the scale of `full_output`, without amax and counters.
Output output_again(const MatrixCase& c, std::int64_t cols, bool values, bool quantized) {
  Output output = full_output(c, cols, DType::e4m3, 37.25f, values);
  output.quantizer.amax = output.quantizer.counters = Tensor();
  if (!quantized) output.quantized = {};
  return output;
}

std::vector<Tensor> written(const Output& output) {
  std::vector<Tensor> tensors;
  for (const Tensor& tensor :
       {output.values, output.quantized.bytes, output.quantized.transposed, output.quantized.scale_inv}) {
    if (tensor) tensors.push_back(tensor);
  }
  return tensors;
}

std::vector<std::shared_ptr<Backend>> all_backends() {
  std::vector<std::shared_ptr<Backend>> all = cpu_backends();
  all.push_back(make_shared_reference());
  all.insert(all.end(), device_backends().begin(), device_backends().end());
  return all;
}

using Operation = std::function<void(Backend&, const Output&)>;

/// `backward` returns what else it wrote, which must not depend on what it writes again.
void expect_forward_again(const MatrixCase& c, std::int64_t cols, const Operation& forward,
                          const std::function<std::vector<Tensor>(Backend&, const Output&)>& backward) {
  for (const auto& backend : all_backends()) {
    if (backend->needs_transposed_fp8() && !suits_devices({empty_matrix(c, cols)})) continue;
    const std::vector<Tensor> alone = host_results(*backend, [&](Backend& b) { return backward(b, {}); });
    for (const auto& [values, quantized] :
         {std::pair(true, false), std::pair(false, true), std::pair(true, true)}) {
      const Output first = output_again(c, cols, values, quantized),
                   second = output_again(c, cols, values, quantized);
      Output again = second;
      if (backend->needs_transposed_fp8()) again.quantized.bytes = {};  // wgrad reads the transposed ones
      forward(*backend, first);
      const std::vector<Tensor> beside =
          host_results(*backend, [&](Backend& b) { return backward(b, again); });
      Output expected = first;
      if (quantized) expected.quantized.bytes = again.quantized.bytes ? first.quantized.bytes : Tensor();
      const std::vector<Tensor> a = written(again), b = written(expected);
      ASSERT_EQ(a.size(), b.size());
      for (std::size_t i = 0; i < a.size(); ++i)
        EXPECT_TRUE(bytes_of(a[i]) == bytes_of(b[i]))
            << backend->describe() << ", result " << i << differences(a[i], b[i]);
      for (std::size_t i = 0; i < alone.size(); ++i)
        EXPECT_TRUE(bytes_of(beside[i]) == bytes_of(alone[i])) << backend->describe() << ", gradient " << i;
    }
  }
}

class PointwiseAgain : public ::testing::TestWithParam<MatrixCase> {};

bool is_large(const MatrixCase& c) {
  return c.rows * c.cols > 2200;
}

INSTANTIATE_TEST_SUITE_P(Sizes, PointwiseAgain, ::testing::ValuesIn([] {
                           std::vector<MatrixCase> cases = matrix_cases();
                           std::erase_if(cases, is_large);
                           return cases;
                         }()));
INSTANTIATE_TEST_SUITE_P(SlowSizes, PointwiseAgain, ::testing::ValuesIn([] {
                           std::vector<MatrixCase> cases = matrix_cases();
                           std::erase_if(cases, [](const MatrixCase& c) {
                             return !is_large(c) || c.dtype != DType::bf16;
                           });
                           return cases;
                         }()));

TEST_P(PointwiseAgain, ActivationBackward) {
  const MatrixCase& c = GetParam();
  const Tensor gate = special_matrix(c, 3), up = special_matrix(c, 4), dh = random_matrix(c, 5);
  for (const Activation kind : {Activation::swiglu, Activation::geglu, Activation::gelu}) {
    const bool gated = kind != Activation::gelu;
    const Tensor g = gated ? gate : Tensor();
    expect_forward_again(
        c, c.cols, [&](Backend& backend, const Output& h) { backend.activation(kind, g, up, h); },
        [&](Backend& backend, const Output& h) {
          const Output dgate{gated ? empty_matrix(c) : Tensor(), {}, {}}, dup{empty_matrix(c), {}, {}};
          backend.activation_backward(kind, dh, g, up, dgate, dup, h);
          return gated ? std::vector{dup.values, dgate.values} : std::vector{dup.values};
        });
  }
}

TEST_P(PointwiseAgain, GateBackward) {
  for (const std::int64_t width : {1, 7, 16}) {
    MatrixCase c = GetParam();
    c.cols *= width;
    if (c.cols > 4200) continue;
    const Tensor o = special_matrix(c, 1), g = special_matrix(GetParam(), 2), dy = random_matrix(c, 3);
    for (const auto kind : {GateActivation::sigmoid, GateActivation::silu}) {
      expect_forward_again(
          c, c.cols, [&](Backend& backend, const Output& y) { backend.gate(kind, o, g, y); },
          [&](Backend& backend, const Output& y) {
            const Tensor d_o = empty_matrix(c), dg = empty_matrix(GetParam());
            backend.gate_backward(kind, dy, o, g, d_o, {dg, {}, {}}, y);
            return std::vector{d_o, dg};
          });
    }
  }
}

}  // namespace
}  // namespace quaver::testing
