/// Comparing the other backends with the reference: inputs of odd sizes and strides; the cpu backend at every
/// level and thread count at once, and the CUDA backend in the launch emulation and on a device where there
/// is one.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "ops/cpu/levels.h"
#include "quaver/backend.h"
#include "quaver/error.h"
#include "support/test_backends.h"

namespace quaver::testing {

/// Sets QUAVER_ISA while it lives.
class IsaScope {
 public:
  explicit IsaScope(const std::string& name) {
    const char* old = std::getenv("QUAVER_ISA");
    if (old != nullptr) old_ = old;
    had_ = old != nullptr;
    setenv("QUAVER_ISA", name.c_str(), 1);
  }
  ~IsaScope() { had_ ? setenv("QUAVER_ISA", old_.c_str(), 1) : unsetenv("QUAVER_ISA"); }
  IsaScope(const IsaScope&) = delete;
  IsaScope& operator=(const IsaScope&) = delete;

 private:
  std::string old_;
  bool had_ = false;
};

/// The cpu backend at every supported level with 1 thread, and at the highest with 2, 3 and 4.
inline const std::vector<std::shared_ptr<Backend>>& cpu_backends() {
  static const auto backends = [] {
    std::vector<std::shared_ptr<Backend>> all;
    const auto add = [&](cpu::Level level, int threads) {
      const IsaScope scope{std::string(name_of(level))};
      all.push_back(make_backend("cpu", threads));
    };
    for (cpu::Level level : cpu::supported_levels()) add(level, 1);
    for (int threads = 2; threads <= 4; ++threads) add(cpu::supported_levels().back(), threads);
    return all;
  }();
  return backends;
}

/// Its memory can be read by every backend.
inline Backend& reference() {
  static const auto backend = make_shared_reference();
  return *backend;
}

/// The CUDA backend where it can run.
inline const std::vector<std::shared_ptr<Backend>>& device_backends() {
  static const auto backends = [] {
    std::vector<std::shared_ptr<Backend>> all;
    for (const std::string& name : test_backends()) {
      if (name != "reference" && name != "cpu") all.push_back(make_test_backend(name));
    }
    return all;
  }();
  return backends;
}

struct MatrixCase {
  std::int64_t rows, cols;
  DType dtype;
  bool strided;  ///< a slice of columns at an odd offset
};

inline void PrintTo(const MatrixCase& c, std::ostream* out) {
  *out << c.rows << "x" << c.cols << " " << name_of(c.dtype) << (c.strided ? " strided" : "");
}

inline std::vector<MatrixCase> matrix_cases() {
  constexpr std::pair<std::int64_t, std::int64_t> kSizes[] = {{1, 1},  {2, 3},  {5, 15},  {65, 16},
                                                              {1, 17}, {5, 33}, {65, 257}};
  std::vector<MatrixCase> cases;
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (bool strided : {false, true}) {
      for (const auto& [rows, cols] : kSizes) cases.push_back({rows, cols, dtype, strided});
    }
    cases.push_back({141, 257, dtype, true});   // several pieces of work
    cases.push_back({1, 40001, dtype, false});  // a row longer than one piece
  }
  return cases;
}

inline Tensor empty_matrix(const MatrixCase& c, std::int64_t cols) {
  if (!c.strided) return reference().allocate(c.dtype, {c.rows, cols});
  return reference().allocate(c.dtype, {c.rows, cols + 8}).columns(3, cols);
}
inline Tensor empty_matrix(const MatrixCase& c) {
  return empty_matrix(c, c.cols);
}

inline void set(const Tensor& matrix, std::int64_t m, std::int64_t n, float value) {
  const std::int64_t index = m * matrix.row_stride() + n;
  if (matrix.dtype() == DType::f32) matrix.data<float>()[index] = value;
  if (matrix.dtype() == DType::bf16) matrix.data<bf16>()[index] = to_bf16(value);
}

/// Normal numbers times `scale`.
inline Tensor random_matrix(const MatrixCase& c, std::uint64_t stream, float scale = 1.0f) {
  const Tensor matrix = empty_matrix(c);
  const Random random(7, stream);
  for (std::int64_t m = 0; m < c.rows; ++m) {
    for (std::int64_t n = 0; n < c.cols; ++n) set(matrix, m, n, scale * random.normal(m * c.cols + n));
  }
  return matrix;
}

/// NaN, infinities, zeros, FP32 denormals, FP8 underflow and overflow among normal numbers.
inline Tensor special_matrix(const MatrixCase& c, std::uint64_t stream) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float specials[] = {std::nanf(""), kInfinity, -kInfinity, 0.0f,   -0.0f,    1e-40f, -1e-40f,
                            1e-4f,         -3e-4f,    470.0f,     -1e30f, 0x1p-10f, 448.0f, 464.0f};
  const Tensor matrix = random_matrix(c, stream, 3.0f);
  const Random random(8, stream);
  for (std::int64_t m = 0; m < c.rows; ++m) {
    for (std::int64_t n = 0; n < c.cols; ++n) {
      const std::uint64_t draw = random.below(m * c.cols + n, 3 * std::size(specials));
      if (draw < std::size(specials)) set(matrix, m, n, specials[draw]);
    }
  }
  return matrix;
}

inline Tensor random_vector(std::int64_t size, std::uint64_t stream, float mean = 0.0f, float std = 1.0f) {
  const Tensor vector = reference().allocate(DType::f32, {size});
  reference().fill_normal(vector, mean, std, 9, stream);
  return vector;
}

inline Tensor copy_of(const Tensor& tensor) {
  const Tensor copy = reference().allocate(tensor.dtype(), tensor.shape());
  reference().copy(tensor, copy);
  return copy;
}

inline Tensor indices_below(std::int64_t count, std::int64_t bound, std::uint64_t stream) {
  const Tensor indices = reference().allocate(DType::i32, {count});
  const Random random(10, stream);
  for (std::int64_t i = 0; i < count; ++i) {
    indices.data<std::int32_t>()[i] = static_cast<std::int32_t>(random.below(i, bound));
  }
  return indices;
}

/// The bytes of a matrix or vector, row after row. An FP32 NaN counts as one NaN: which of two NaN operands
/// an instruction passes on, and the sign of one it makes, differ between levels and compilers.
inline std::string bytes_of(const Tensor& tensor) {
  const Tensor matrix = tensor.shape().size() == 2 ? tensor : tensor.reshape({1, tensor.elements()});
  const std::size_t width = size_of(tensor.dtype());
  std::string bytes;
  for (std::int64_t m = 0; m < matrix.rows(); ++m) {
    const auto* row = static_cast<const char*>(matrix.slice(m, 1).raw());
    bytes.append(row, static_cast<std::size_t>(matrix.cols()) * width);
  }
  if (tensor.dtype() != DType::f32) return bytes;
  for (std::size_t i = 0; i < bytes.size(); i += width) {
    float value;
    std::memcpy(&value, &bytes[i], width);
    if (!std::isnan(value)) continue;
    value = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(&bytes[i], &value, width);
  }
  return bytes;
}

/// Where two tensors of one type and shape differ: the first few elements, as numbers.
inline std::string differences(const Tensor& found, const Tensor& expected) {
  const std::string a = bytes_of(found), b = bytes_of(expected);
  const std::size_t width = size_of(found.dtype());
  const auto number = [&](const char* at) {
    std::int64_t i64;
    float f32;
    if (found.dtype() == DType::i64) return std::memcpy(&i64, at, width), std::to_string(i64);
    if (found.dtype() == DType::f32) return std::memcpy(&f32, at, width), std::to_string(f32);
    std::string bytes;
    for (std::size_t i = width; i-- > 0;) bytes += fmt::format("{:02x}", static_cast<unsigned char>(at[i]));
    return bytes;
  };
  std::string text;
  int shown = 0;
  for (std::size_t i = 0; i < a.size() && shown < 4; i += width) {
    if (a.compare(i, width, b, i, width) == 0) continue;
    text += fmt::format(" [{}] {} for {}", i / width, number(&a[i]), number(&b[i]));
    ++shown;
  }
  return text;
}

/// |found - expected| <= absolute + relative |expected|; for bf16 results one unit in the last place, 2^-7,
/// is added, because two FP32 results that differ in their last bits may round to neighbours.
struct Bound {
  float relative, absolute;
};

inline void expect_near(const Tensor& found, const Tensor& expected, Bound bound, const std::string& where) {
  const float relative = bound.relative + (expected.dtype() == DType::bf16 ? 0x1p-7f : 0.0f);
  const std::vector<float> a = download(reference(), found), b = download(reference(), expected);
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(b[i]) || std::isinf(b[i])) {
      ASSERT_TRUE(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])))
          << where << ", element " << i << ": " << a[i] << ", expected " << b[i];
    } else {
      ASSERT_LE(std::fabs(a[i] - b[i]), bound.absolute + relative * std::fabs(b[i]))
          << where << ", element " << i << ": " << a[i] << ", expected " << b[i];
    }
  }
}

/// Runs an operation on one backend from the same inputs and returns what it wrote.
using Run = std::function<std::vector<Tensor>(Backend&)>;

/// All levels and thread counts of the cpu backend give the same bytes. Returns them.
inline std::vector<Tensor> expect_one_result(const Run& run) {
  const std::vector<Tensor> first = run(*cpu_backends().front());
  for (const auto& backend : cpu_backends()) {
    const std::vector<Tensor> other = run(*backend);
    for (std::size_t i = 0; i < first.size(); ++i) {
      EXPECT_EQ(bytes_of(first[i]) == bytes_of(other[i]), true)
          << "result " << i << " of " << backend->describe() << " differs from that of "
          << cpu_backends().front()->describe();
    }
  }
  return first;
}

/// The results of a backend that may compute on a device, in memory of the host.
inline std::vector<Tensor> host_results(Backend& backend, const Run& run) {
  std::vector<Tensor> results = run(backend);
  for (Tensor& result : results) {
    if (result.device() == Device::host) continue;
    const Tensor packed = backend.allocate(result.dtype(), result.shape());
    backend.copy(result, packed);
    result = reference().allocate(packed.dtype(), packed.shape());
    backend.copy_to_host(packed, result.raw());
  }
  finish(backend);
  return results;
}

/// Under the address sanitizer the launch emulation's fibers are hundreds of times slower: small cases only.
inline bool suits_devices([[maybe_unused]] const std::vector<Tensor>& results) {
#ifdef __SANITIZE_ADDRESS__
  for (const Tensor& result : results) {
    if (result.elements() > 2000) return false;
  }
#endif
  return true;
}

/// compare(result of a backend, the reference's, where), for the cpu backend and every device.
inline void compare_with_reference(
    const Run& run, const std::function<void(const Tensor&, const Tensor&, std::string)>& compare) {
  const std::vector<Tensor> expected = run(reference());
  const auto compare_all = [&](const std::vector<Tensor>& found, const std::string& where) {
    for (std::size_t i = 0; i < expected.size(); ++i)
      compare(found[i], expected[i], where + ", result " + std::to_string(i));
  };
  compare_all(expect_one_result(run), "cpu");
  if (!suits_devices(expected)) return;
  for (const auto& backend : device_backends()) compare_all(host_results(*backend, run), backend->describe());
}

inline void expect_equals_reference(const Run& run) {
  compare_with_reference(run, [](const Tensor& found, const Tensor& expected, const std::string& where) {
    EXPECT_EQ(bytes_of(found) == bytes_of(expected), true)
        << where << " differs from the reference" << differences(found, expected);
  });
}

inline void expect_near_reference(const Run& run, Bound bound) {
  compare_with_reference(run, [&](const Tensor& found, const Tensor& expected, const std::string& where) {
    expect_near(found, expected, bound, where);
  });
}

/// An output with everything that a cast can write.
inline Output full_output(const MatrixCase& c, std::int64_t cols, DType format, float scale, bool values) {
  Backend& host = reference();
  Output output;
  if (values) output.values = empty_matrix(c, cols);
  const Tensor bytes = host.allocate(format, {c.rows, cols + 5});
  output.quantized = {c.strided ? bytes.columns(1, cols) : host.allocate(format, {c.rows, cols}),
                      host.allocate(format, {cols, c.rows}), host.allocate(DType::f32, {1})};
  output.quantizer = {format, host.allocate(DType::f32, {1}), host.allocate(DType::f32, {1}),
                      host.allocate(DType::i64, {kCastCounters})};
  host.fill(output.quantizer.scale, scale);
  host.fill(output.quantizer.amax, 0.5);
  host.fill(output.quantizer.counters, 3);
  return output;
}

inline std::vector<Tensor> tensors_of(const Output& output) {
  std::vector<Tensor> tensors{output.quantized.bytes, output.quantized.transposed, output.quantized.scale_inv,
                              output.quantizer.amax, output.quantizer.counters};
  if (output.values) tensors.push_back(output.values);
  return tensors;
}

/// What `produce` writes in high precision and a separate cast turns into: every form of the result.
inline std::vector<Tensor> separate_cast(const MatrixCase& c, std::int64_t cols, DType format, bool values,
                                         Backend& backend,
                                         const std::function<void(Backend&, const Output&)>& produce) {
  Output plain;
  plain.values = empty_matrix(c, cols);
  produce(backend, plain);
  finish(backend);
  const Output separate = full_output(c, cols, format, 37.25f, values);
  reference().cast(plain.values, separate);
  return tensors_of(separate);
}

/// A producer that casts its own result writes what a separate cast of its rounded result writes: in every
/// form, at every level.
inline void expect_fused_cast(const MatrixCase& c, std::int64_t cols,
                              const std::function<void(Backend&, const Output&)>& produce) {
  for (DType format : {DType::e4m3, DType::e5m2}) {
    for (bool values : {false, true}) {
      const Run run = [&](Backend& backend) {
        const Output output = full_output(c, cols, format, 37.25f, values);
        produce(backend, output);
        return tensors_of(output);
      };
      const auto expect_same = [&](Backend& backend, const std::vector<Tensor>& fused) {
        const std::vector<Tensor> expected = separate_cast(c, cols, format, values, backend, produce);
        for (std::size_t i = 0; i < expected.size(); ++i) {
          EXPECT_EQ(bytes_of(fused[i]) == bytes_of(expected[i]), true)
              << backend.describe() << ", " << name_of(format) << ", result " << i
              << differences(fused[i], expected[i]);
        }
      };
      const std::vector<Tensor> fused = expect_one_result(run);
      expect_same(*cpu_backends().front(), fused);
      if (!suits_devices(fused)) continue;
      for (const auto& backend : device_backends()) expect_same(*backend, host_results(*backend, run));
    }
  }
}

}  // namespace quaver::testing
