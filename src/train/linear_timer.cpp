#include "train/linear_timer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>

namespace quaver {
namespace {

/// A measurement lasts this long: much longer than the clock's steps and than waiting for a device.
constexpr double kMeasuredSeconds = 1e-3;
constexpr int kMostRepeats = 100;
/// Rounds: three always, more while they take less than this.
constexpr int kFewestRounds = 3, kMostRounds = 15;
constexpr double kEnoughSeconds = 0.5;

class Stopwatch {
 public:
  explicit Stopwatch(Backend& backend) : backend_(backend), mark_(backend.allocate(DType::u8, {1})) {}

  double seconds(const std::function<void()>& work, int repeats) {
    finish();
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i) work();
    finish();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / repeats;
  }

 private:
  /// Waits for everything that the backend was asked to do.
  void finish() {
    std::uint8_t value = 0;
    backend_.fill(mark_, 0);
    backend_.copy_to_host(mark_, &value);
  }

  Backend& backend_;
  Tensor mark_;
};

/// One thing to be timed, and where the result goes.
struct Task {
  std::function<void()> work;
  double* result;
  int repeats = 1;
  std::vector<double> seconds = {};
};

/// Other users of the machine only ever add time, on a busy one to more than half of all rounds: the lower quartile is what
/// the work itself takes.
void take_lower_quartiles(Backend& backend, std::vector<Task>& tasks) {
  Stopwatch watch(backend);
  double spent = 0;
  for (Task& task : tasks) {
    watch.seconds(task.work, 1);  // kernels are chosen, memory is touched for the first time
    const double once = watch.seconds(task.work, 1);
    task.repeats =
        static_cast<int>(std::clamp(std::ceil(kMeasuredSeconds / once), 1.0, double{kMostRepeats}));
  }
  for (int round = 0; round < kFewestRounds || (round < kMostRounds && spent < kEnoughSeconds); ++round) {
    for (Task& task : tasks) {
      task.seconds.push_back(watch.seconds(task.work, task.repeats));
      spent += task.seconds.back() * task.repeats;
    }
  }
  for (Task& task : tasks) {
    const auto quartile = task.seconds.begin() + static_cast<std::ptrdiff_t>(task.seconds.size() / 4);
    std::nth_element(task.seconds.begin(), quartile, task.seconds.end());
    *task.result = *quartile;
  }
}

/// A matrix in FP32 or BF16, and as FP8.
struct Matrix {
  Tensor real;
  Output as_fp8;  ///< the cast's output
};

class Operands {
 public:
  Operands(Backend& backend, const Recipe& recipe)
      : backend_(backend), recipe_(std::get<DelayedScaling>(recipe)) {}

  Tensor normal(std::int64_t rows, std::int64_t cols, float std, std::uint64_t stream, DType dtype) {
    const Tensor values = backend_.allocate(DType::f32, {rows, cols});
    backend_.fill_normal(values, 0, std, 1, stream);
    if (dtype == DType::f32) return values;
    const Tensor converted = backend_.allocate(dtype, {rows, cols});
    backend_.convert(values, converted);
    return converted;
  }

  /// With amax and counters, as in training. The scale is near the one that delayed scaling would find.
  Matrix matrix(std::int64_t rows, std::int64_t cols, float std, std::uint64_t stream, bool gradient,
                DType dtype) {
    Matrix m{normal(rows, cols, std, stream, dtype), {}};
    const DType format = gradient ? gradient_dtype(recipe_) : forward_dtype(recipe_);
    QuantizedTensor& q = m.as_fp8.quantized;
    q.bytes = backend_.allocate(format, {rows, cols});
    if (backend_.needs_transposed_fp8()) q.transposed = backend_.allocate(format, {cols, rows});
    q.scale_inv = backend_.allocate(DType::f32, {1});
    m.as_fp8.quantizer = {format, backend_.allocate(DType::f32, {1}), backend_.allocate(DType::f32, {1}),
                          backend_.allocate(DType::i64, {kCastCounters})};
    constexpr float kLargestInDeviations = 6;
    backend_.fill(m.as_fp8.quantizer.scale,
                  (format == DType::e4m3 ? 448.0f : 57344.0f) / (kLargestInDeviations * std));
    backend_.fill(m.as_fp8.quantizer.amax, 0);
    backend_.fill(m.as_fp8.quantizer.counters, 0);
    backend_.cast(m.real, m.as_fp8);
    return m;
  }

 private:
  Backend& backend_;
  DelayedScaling recipe_;
};

}  // namespace

LinearTimes time_linear(Backend& backend, const Recipe& recipe, const LinearShape& shape,
                        std::int64_t input_readers, std::int64_t micro_batches_per_step) {
  const auto [rows, in, out] = shape;
  Operands make(backend, recipe);
  const Matrix x = make.matrix(rows, in, 1.0f, 0, false, DType::bf16),
               w = make.matrix(out, in, 0.02f, 1, false, DType::f32),
               dy = make.matrix(rows, out, 1e-3f, 2, true, DType::bf16);
  const Tensor w_bf16 = backend.allocate(DType::bf16, {out, in}),
               x_copy = backend.allocate(DType::bf16, {rows, in}),
               y = backend.allocate(DType::bf16, {rows, out}), dx = backend.allocate(DType::bf16, {rows, in}),
               dw = backend.allocate(DType::f32, {out, in});
  backend.convert(w.real, w_bf16);
  backend.fill(dw, 0);
  Output x_both = x.as_fp8;
  x_both.values = x_copy;
  const bool accumulate = micro_batches_per_step > 1;

  LinearTimes times;
  const auto product = [&](Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& result) {
    const bool adds = kind == Gemm::wgrad && accumulate;
    return [&backend, kind, a, b, result, adds] { backend.gemm(kind, a, b, {}, adds, result); };
  };
  const GemmOperand x8 = x.as_fp8.quantized, w8 = w.as_fp8.quantized, dy8 = dy.as_fp8.quantized;
  // FP8 and BF16 of one product stand side by side: what disturbs the machine disturbs both.
  std::vector<Task> tasks = {
      {product(Gemm::fprop, x8, w8, y), &times.fp8[0]},
      {product(Gemm::fprop, x.real, w_bf16, y), &times.bf16[0]},
      {product(Gemm::dgrad, dy8, w8, dx), &times.fp8[1]},
      {product(Gemm::dgrad, dy.real, w_bf16, dx), &times.bf16[1]},
      {product(Gemm::wgrad, dy8, x8, dw), &times.fp8[2]},
      {product(Gemm::wgrad, dy.real, x.real, dw), &times.bf16[2]},
      {[&] { backend.cast(x.real, x.as_fp8); }, &times.input_fp8},
      {[&] { backend.copy(x.real, x_copy); }, &times.input_bf16},
      {[&] { backend.cast(x.real, x_both); }, &times.input_both},
      {[&] { backend.cast(w.real, w.as_fp8); }, &times.weight_fp8},
      {[&] { backend.convert(w.real, w_bf16); }, &times.weight_bf16},
      {[&] { backend.cast(dy.real, dy.as_fp8); }, &times.gradient_fp8},
  };
  take_lower_quartiles(backend, tasks);
  for (double* time : {&times.input_fp8, &times.input_bf16, &times.input_both})
    *time /= static_cast<double>(input_readers);
  for (double* time : {&times.weight_fp8, &times.weight_bf16})
    *time /= static_cast<double>(micro_batches_per_step);
  return times;
}

}  // namespace quaver
