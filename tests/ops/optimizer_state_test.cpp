/// AdamW's state in BF16 and FP8: codes worked out by hand, and all backends against the reference bit for bit. The rule in numpy is in tests/oracle/adamw_state_test.py.
#include "ops/pointwise_support.h"
#include "support/errors.h"

namespace quaver::testing {
namespace {

constexpr float kLeastScale = 0x1p-100f / 448.0f;
constexpr int kRagged = 3;  // elements after three whole blocks

Tensor codes_of(Backend& backend, const std::vector<std::uint8_t>& codes) {
  const Tensor tensor = backend.allocate(DType::e4m3, {static_cast<std::int64_t>(codes.size())});
  backend.copy_from_host(codes.data(), tensor);
  return tensor;
}

std::vector<std::uint8_t> codes_in(Backend& backend, const Tensor& tensor) {
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(tensor.elements()));
  backend.copy_to_host(tensor, codes.data());
  return codes;
}

class Fp8Moments : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<Backend> backend = make_test_backend(GetParam());

  Tensor vector(const std::vector<float>& values) {
    return upload(*backend, values, {static_cast<std::int64_t>(values.size())});
  }
  /// Three blocks and a rest, all moments zero.
  AdamWTensor fresh(const std::vector<float>& gradient) {
    const std::vector<std::uint8_t> none(gradient.size());
    const std::size_t blocks = (gradient.size() + kMomentBlock - 1) / kMomentBlock;
    AdamWTensor tensor{vector(gradient), vector(std::vector<float>(gradient.size(), 1.0f)),
                       codes_of(*backend, none), codes_of(*backend, none)};
    tensor.m_scales = vector(std::vector<float>(blocks));
    tensor.v_scales = vector(std::vector<float>(blocks));
    return tensor;
  }
  void step(const AdamWStep& how, const AdamWTensor& tensor, float norm = 1) {
    backend->adamw(how, vector({norm}), 0, std::span(&tensor, 1));
  }
  std::vector<float> floats(const Tensor& tensor) { return download(*backend, tensor); }
};
INSTANTIATE_TEST_SUITE_P(Backends, Fp8Moments, ::testing::ValuesIn(test_backends()));

/// With both betas 0 the moments are the gradient and its square, and their codes can be read off the gradient.
constexpr AdamWStep kTakeGradient{.lr = 0, .beta1 = 0, .beta2 = 0};

/// A block of largest magnitude 448, whose codes are those of the numbers themselves; a block of zeros; a block of
/// FP32 denormals; three numbers. Numbers between two codes may get either.
struct HandMade {
  std::vector<float> gradient = std::vector<float>(3 * kMomentBlock + kRagged);
  std::vector<std::uint8_t> m = std::vector<std::uint8_t>(gradient.size()), v = m;
  std::vector<bool> m_between = std::vector<bool>(gradient.size()), v_between = m_between;

  HandMade() {
    struct Case {
      float gradient;
      std::uint8_t m, v;
      bool m_between = false, v_between = false;
    };
    const Case first[] = {
        {448, 0x7E, 0x7E},
        {1, 0x38, 0x38},
        {1.0625f, 0x38, 0x38, true, true},  // between 1 and 1.125
        {-1.1875f, 0xB9, 0x39, true, true},
        {-2, 0xC0, 0x40},         // square roots have no sign
        {0x1p-9f, 0x01, 0x01},    // the smallest code
        {0x1.8p-8f, 0x03, 0x03},  // a denormal code
        {0x1.8p-9f, 0x01, 0x01, true, true},
        {0x1p-10f, 0x00, 0x01, true},  // a positive v keeps a code
        {0x1p-30f, 0x00, 0x01, true},
    };
    std::size_t i = 0;
    const auto add = [&](const Case& one) {
      gradient[i] = one.gradient;
      m[i] = one.m;
      v[i] = one.v;
      m_between[i] = one.m_between;
      v_between[i++] = one.v_between;
    };
    for (const Case& one : first) add(one);
    for (i = 2 * kMomentBlock; i < 3 * kMomentBlock;) add({1e-40f, 0, 0, true});
    for (const Case& one : {Case{1, 0x70, 0x70}, Case{2, 0x78, 0x78}, Case{-3.5f, 0xFE, 0x7E}})
      add(one);  // times 128
  }

  void expect(const std::vector<std::uint8_t>& found_m, const std::vector<std::uint8_t>& found_v) const {
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      EXPECT_TRUE(found_m[i] == m[i] || (m_between[i] && found_m[i] == m[i] + 1)) << i << ": " << +found_m[i];
      EXPECT_TRUE(found_v[i] == v[i] || (v_between[i] && found_v[i] == v[i] + 1)) << i << ": " << +found_v[i];
    }
  }
};

TEST_P(Fp8Moments, CodesAndScalesAreThoseWorkedOutByHand) {
  const HandMade expected;
  const AdamWTensor tensor = fresh(expected.gradient);
  step(kTakeGradient, tensor);
  expected.expect(codes_in(*backend, tensor.m), codes_in(*backend, tensor.v));
  for (const Tensor& scales : {tensor.m_scales, tensor.v_scales})
    EXPECT_EQ(floats(scales), (std::vector<float>{1, kLeastScale, kLeastScale, 0x1p-7f}));
}

TEST_P(Fp8Moments, WithoutGradientsScalesShrinkAndCodesStay) {
  const HandMade made;
  AdamWTensor tensor = fresh(made.gradient);
  step(kTakeGradient, tensor);
  const auto m = codes_in(*backend, tensor.m), v = codes_in(*backend, tensor.v);
  tensor.gradient = vector(std::vector<float>(made.gradient.size()));
  step({.lr = 0, .beta1 = 0.5f, .beta2 = 0.25f, .step = 2}, tensor);
  const auto later_m = codes_in(*backend, tensor.m), later_v = codes_in(*backend, tensor.v);
  for (std::size_t i = 0; i < m.size(); ++i) {
    if (i / kMomentBlock == 2) continue;  // at the least scale
    EXPECT_EQ(later_m[i], m[i]) << i;
    EXPECT_EQ(later_v[i], v[i]) << i;
  }
  for (const Tensor& scales : {tensor.m_scales, tensor.v_scales}) {
    const auto found = floats(scales);
    EXPECT_EQ(found[0], 0.5f);
    EXPECT_EQ(found[1], kLeastScale);
    EXPECT_EQ(found[3], 0x1p-8f);
  }
}

TEST_P(Fp8Moments, TheStepReadsTheMomentsOfTheCodes) {
  // m = 3 * 0.5, sqrt(v) = 2 * 0.25; 1 - beta^step is 1 for betas of 0.5 after very many steps.
  AdamWTensor tensor = fresh({0});
  tensor.m = codes_of(*backend, {0x44});
  tensor.v = codes_of(*backend, {0x40});
  tensor.m_scales = vector({0.5f});
  tensor.v_scales = vector({0.25f});
  step({.lr = 0.25f, .beta1 = 0.5f, .beta2 = 0.25f, .epsilon = 0, .step = 1000}, tensor);
  // m = 0.75, v = 0.0625: 1 - 0.25 * 0.75 / 0.25.
  EXPECT_EQ(floats(tensor.value), (std::vector<float>{0.25f}));
}

TEST_P(Fp8Moments, ANanStaysInItsElement) {
  const HandMade expected;
  AdamWTensor tensor = fresh(expected.gradient);
  std::vector<std::uint8_t> codes(expected.gradient.size());
  codes[5] = codes[3 * kMomentBlock] = 0x7F;
  tensor.m = codes_of(*backend, codes);
  tensor.v = codes_of(*backend, codes);
  tensor.m_scales = vector({1, 1, 1, 1});
  tensor.v_scales = vector({1, 1, 1, 1});
  step({.lr = 1, .beta1 = 0, .beta2 = 0, .step = 1000}, tensor);
  auto m = codes_in(*backend, tensor.m), v = codes_in(*backend, tensor.v);
  const auto value = floats(tensor.value);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    EXPECT_EQ(std::isnan(value[i]), codes[i] == 0x7F) << i;
    if (codes[i] != 0x7F) continue;
    EXPECT_EQ(m[i], 0x7F);
    EXPECT_EQ(v[i], 0x7F);
    m[i] = expected.m[i];
    v[i] = expected.v[i];
  }
  expected.expect(m, v);
}

TEST_P(Fp8Moments, NothingIsWrittenWhenTheNormIsNotFinite) {
  AdamWTensor tensor = fresh({1, 2});
  tensor.m = codes_of(*backend, {0x11, 0x22});
  tensor.m_scales = vector({3});
  step({.lr = 1}, tensor, std::nanf(""));
  EXPECT_EQ(codes_in(*backend, tensor.m), (std::vector<std::uint8_t>{0x11, 0x22}));
  EXPECT_EQ(floats(tensor.m_scales), (std::vector<float>{3}));
  EXPECT_EQ(floats(tensor.value), (std::vector<float>{1, 1}));
}

TEST_P(Fp8Moments, TypesAndScalesThatDoNotFitAreNamed) {
  const auto refusal = [&](const std::function<void(AdamWTensor&)>& change) {
    AdamWTensor tensor = fresh({1, 2});
    change(tensor);
    return error_message(ErrorKind::usage, [&] { step({}, tensor); });
  };
  EXPECT_TRUE(contains(refusal([](auto& t) { t.v_scales = {}; }), "v_scales is absent"));
  EXPECT_TRUE(contains(refusal([&](auto& t) { t.m_scales = vector({1, 1}); }), "m_scales has shape"));
  EXPECT_TRUE(contains(refusal([&](auto& t) { t.v = vector({0, 0}); }), "v has type f32, expected e4m3"));
  EXPECT_TRUE(contains(refusal([&](auto& t) { t.m = t.v = vector({0, 0}); }), "m_scales must be absent"));
  EXPECT_TRUE(contains(refusal([&](auto& t) { t.m = backend->allocate(DType::e5m2, {2}); }),
                       "m has type e5m2, expected f32, bf16 or e4m3"));
}

struct Stored {
  DType value, moments;
};
constexpr Stored kStored[] = {{DType::f32, DType::bf16},
                              {DType::f32, DType::e4m3},
                              {DType::bf16, DType::f32},
                              {DType::bf16, DType::bf16},
                              {DType::bf16, DType::e4m3}};

/// A matrix with copies and a vector.
class StoredState : public ::testing::TestWithParam<MatrixCase> {
 protected:
  /// With the copies that the matrix gets.
  static std::vector<AdamWTensor> tensors(const Stored& types) {
    std::vector<AdamWTensor> all{state(types, {GetParam().rows, GetParam().cols}, 30),
                                 state(types, {37}, 40)};
    const Output copy = full_output(GetParam(), GetParam().cols, DType::e4m3, 37.25f, false);
    all[0].copies = {reference().allocate(DType::bf16, {GetParam().rows, GetParam().cols}), copy.quantized,
                     copy.quantizer};
    for (const Tensor& written : {all[0].copies.bf16, copy.quantized.transposed, copy.quantized.scale_inv})
      std::memset(written.raw(), 0x35, written.elements() * size_of(written.dtype()));
    for (std::int64_t m = 0; m < GetParam().rows; ++m) {
      for (std::int64_t n = 0; n < GetParam().cols; ++n)
        copy.quantized.bytes.data<std::uint8_t>()[m * copy.quantized.bytes.row_stride() + n] = 0x35;
    }
    all[1].decays = false;
    return all;
  }
  static void step(Backend& backend, const std::vector<AdamWTensor>& tensors, std::int64_t count,
                   float norm = 7.5f) {
    backend.adamw({.lr = 3e-3f, .weight_decay = 0.1f, .step = count, .seed = 6},
                  upload(backend, std::vector{norm}, {1}), 1.0f, tensors);
  }
  /// All that a step writes.
  static std::vector<Tensor> parts_of(const std::vector<AdamWTensor>& tensors) {
    const WeightCopies& copies = tensors[0].copies;
    std::vector<Tensor> all = tensors_of(Output{{}, copies.fp8, copies.quantizer});
    all.push_back(copies.bf16);
    for (const AdamWTensor& t : tensors) {
      all.insert(all.end(), {t.value, t.m, t.v});
      if (t.m_scales) all.insert(all.end(), {t.m_scales, t.v_scales});
    }
    return all;
  }

 private:
  static Tensor as(const Tensor& tensor, DType type) {
    const Tensor converted = reference().allocate(type, tensor.shape());
    reference().convert(tensor, converted);
    return converted;
  }
  /// Gradients over many orders of magnitude; moments of any size, v not negative; every code that is a number, and scales
  /// up to 1 and 0.
  static AdamWTensor state(const Stored& types, const Shape& shape, std::uint64_t stream) {
    Backend& host = reference();
    const std::int64_t count = element_count(shape);
    AdamWTensor t{random_vector(count, stream).reshape(shape),
                  as(random_vector(count, stream + 1).reshape(shape), types.value),
                  {},
                  {}};
    t.noise_stream = stream;
    const Random random(5, stream);
    for (std::int64_t i = 0; i < count; ++i)
      t.gradient.data<float>()[i] *= std::exp2(-static_cast<float>(random.below(i, 40)));
    if (types.moments != DType::e4m3) {
      const Tensor m = random_vector(count, stream + 2).reshape(shape),
                   v = random_vector(count, stream + 3).reshape(shape);
      for (std::int64_t i = 0; i < count; ++i) v.data<float>()[i] *= v.data<float>()[i];
      t.m = as(m, types.moments);
      t.v = as(v, types.moments);
      return t;
    }
    t.m = host.allocate(DType::e4m3, shape);
    t.v = host.allocate(DType::e4m3, shape);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto code = static_cast<std::uint8_t>(random.below(i, 127));
      t.m.data<std::uint8_t>()[i] = static_cast<std::uint8_t>(code | (i % 2) << 7);
      t.v.data<std::uint8_t>()[i] = code;
    }
    const std::int64_t blocks = (count + kMomentBlock - 1) / kMomentBlock;
    t.m_scales = host.allocate(DType::f32, {blocks});
    t.v_scales = host.allocate(DType::f32, {blocks});
    for (std::int64_t b = 0; b < blocks; ++b) {
      t.m_scales.data<float>()[b] = b % 5 == 4 ? 0 : std::exp2(-static_cast<float>(5 * b % 60));
      t.v_scales.data<float>()[b] = b % 7 == 6 ? 0 : std::exp2(-static_cast<float>(7 * b % 60));
    }
    return t;
  }
};
INSTANTIATE_TEST_SUITE_P(Shapes, StoredState,
                         ::testing::Values(MatrixCase{1, 1, DType::f32, false},
                                           MatrixCase{5, 33, DType::f32, true},
                                           MatrixCase{128, 64, DType::f32, false},
                                           MatrixCase{131, 128, DType::f32, false},  // rows of whole blocks
                                           MatrixCase{7, 256, DType::f32, true},
                                           MatrixCase{259, 257, DType::f32, false}));

// The same IEEE operations in the same order: equality, at every level and number of threads, and on devices.
TEST_P(StoredState, EqualsThatOfTheReference) {
  for (const Stored& types : kStored) {
    SCOPED_TRACE(fmt::format("{} and {}", name_of(types.value), name_of(types.moments)));
    expect_equals_reference([&](Backend& backend) {
      const std::vector<AdamWTensor> all = tensors(types);
      for (const std::int64_t count : {3, 4}) step(backend, all, count);
      return parts_of(all);
    });
  }
}

TEST_P(StoredState, IsNotWrittenWhenTheNormIsNotFinite) {
  for (const Stored& types : kStored) {
    const std::vector<Tensor> before = parts_of(tensors(types));
    for (const std::string& name : test_backends()) {
      const auto backend = make_test_backend(name);
      const std::vector<AdamWTensor> all = tensors(types);
      const std::vector<Tensor> after = host_results(*backend, [&](Backend& b) {
        step(b, all, 3, std::nanf(""));
        return parts_of(all);
      });
      for (std::size_t i = 0; i < before.size(); ++i)
        EXPECT_EQ(bytes_of(after[i]) == bytes_of(before[i]), true)
            << name << ", " << name_of(types.value) << " and " << name_of(types.moments) << ", result " << i;
    }
  }
}

}  // namespace
}  // namespace quaver::testing
