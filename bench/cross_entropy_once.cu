/// Cross entropy with one read of memory (cross_entropy_once.cuh) beside the CUDA backend's two passes, in turns, on logits of
/// 32768 x 32768: times, and shares of the rate of a copy, of 4 bytes a logit (read once; bytes and transposed bytes written). Exits with 1
/// if results differ by more than the experiment says of itself.
///
/// usage: bench_cross_entropy_once
#include "cross_entropy_once.cuh"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <utility>
#include <vector>

#include "base/busy_timer.h"
#include "ops/cuda/device/runtime.h"

namespace quaver::cuda {
namespace {

constexpr int kRows = 32768, kCols = 32768, kRounds = 9;
constexpr std::int64_t kLogits = std::int64_t{kRows} * kCols, kCopyBytes = std::int64_t{1} << 30;
constexpr float kGradientScale = 1e-3f;
constexpr double kCastScale = 0x1p24;  // gradients reach 1e-3
constexpr float kLossBound = 1e-5f;

struct Results {
  Tensor losses;
  Output gradient;
};

Tensor filled(Backend& backend, DType dtype, Shape shape, double value) {
  const Tensor tensor = backend.allocate(dtype, shape);
  backend.fill(tensor, value);
  return tensor;
}

Results allocate_results(Backend& backend) {
  Results results;
  results.losses = filled(backend, DType::f32, {kRows}, 0);
  results.gradient.quantized = {backend.allocate(DType::e5m2, {kRows, kCols}),
                                backend.allocate(DType::e5m2, {kCols, kRows}),
                                backend.allocate(DType::f32, {1})};
  results.gradient.quantizer = {DType::e5m2, filled(backend, DType::f32, {1}, kCastScale),
                                filled(backend, DType::f32, {1}, 0),
                                filled(backend, DType::i64, {kCastCounters}, 0)};
  return results;
}

Tensor normal_logits(Backend& backend) {
  const Tensor real = backend.allocate(DType::f32, {kRows, kCols}),
               logits = backend.allocate(DType::bf16, {kRows, kCols});
  backend.fill_normal(real, 0, 1, 1, 1);
  backend.convert(real, logits);
  return logits;
}

Tensor scattered_targets(Backend& backend) {
  constexpr std::int64_t kStep = 10007, kWithout = 64;  // prime; every so many rows one without target
  std::vector<std::int32_t> targets(kRows);
  for (std::int64_t m = 0; m < kRows; ++m)
    targets[m] = m % kWithout == 3 ? -1 : static_cast<std::int32_t>(m * kStep % kCols);
  return upload(backend, targets, {kRows});
}

once::CrossEntropy call_of(const Tensor& logits, const Tensor& targets, const Tensor& fault,
                           const Results& results) {
  const QuantizedTensor& quantized = results.gradient.quantized;
  const Quantizer& quantizer = results.gradient.quantizer;
  once::CrossEntropy call;
  call.logits = matrix_of<bf16>(logits);
  call.rows = kRows;
  call.cols = kCols;
  call.targets = targets.data<std::int32_t>();
  call.gradient_scale = kGradientScale;
  call.losses = results.losses.data<float>();
  call.fault = fault.data<int>();
  call.bytes = matrix_of<std::uint8_t>(quantized.bytes);
  call.transposed = matrix_of<std::uint8_t>(quantized.transposed);
  call.scale = quantizer.scale.data<float>();
  call.scale_inv = quantized.scale_inv.data<float>();
  call.amax = quantizer.amax.data<float>();
  call.counters = quantizer.counters.data<unsigned long long>();
  return call;
}

struct Differences {
  unsigned long long bytes, far, transposed;  ///< far: by more than one code
};
__global__ void compare_bytes(Matrix<std::uint8_t> expected, Matrix<std::uint8_t> found,
                              Matrix<std::uint8_t> transposed, Differences* differences) {
  const std::int64_t m = blockIdx.x;
  Differences own{};
  for (std::int64_t n = threadIdx.x; n < kCols; n += blockDim.x) {
    const int byte = *found.address(m, n), distance = abs(byte - *expected.address(m, n));
    own.bytes += distance > 0;
    own.far += distance > 1;
    own.transposed += *transposed.address(n, m) != byte;
  }
  if (own.bytes) atomicAdd(&differences->bytes, own.bytes);
  if (own.far) atomicAdd(&differences->far, own.far);
  if (own.transposed) atomicAdd(&differences->transposed, own.transposed);
}

Differences compare_gradients(Backend& backend, const Results& expected, const Results& found,
                              DeviceStream stream) {
  const Tensor counts = filled(backend, DType::i64, {3}, 0);
  start_kernel("compare_bytes", compare_bytes, {kRows, 256}, stream,
               matrix_of<std::uint8_t>(expected.gradient.quantized.bytes),
               matrix_of<std::uint8_t>(found.gradient.quantized.bytes),
               matrix_of<std::uint8_t>(found.gradient.quantized.transposed), counts.data<Differences>());
  Differences differences{};
  backend.copy_to_host(counts, &differences);
  return differences;
}

float compare_losses(Backend& backend, const Results& expected, const Results& found) {
  const std::vector<float> a = download(backend, expected.losses), b = download(backend, found.losses);
  float most = 0;
  for (std::size_t m = 0; m < a.size(); ++m) {
    const float difference = std::fabs(a[m] - b[m]);
    if (std::isnan(difference)) return std::numeric_limits<float>::infinity();
    most = std::max(most, difference);
  }
  return most;
}

void print_traces(Backend& backend, const char* name, const Results& results) {
  std::array<std::int64_t, kCastCounters> counters{};
  backend.copy_to_host(results.gradient.quantizer.counters, counters.data());
  fmt::print("{:10} amax {:.6g}, saturated {}, underflowed {}, NaN {}, infinite {}, zeros {} of {}\n", name,
             download(backend, results.gradient.quantizer.amax)[0], counters[kCastSaturated],
             counters[kCastUnderflowed], counters[kCastNan], counters[kCastInfinite], counters[kCastZeros],
             counters[kCastElements]);
}

/// Prints what differs; whether it is no more than it may.
bool check_results(Backend& backend, const Results& expected, const Results& found, DeviceStream stream) {
  const Differences differences = compare_gradients(backend, expected, found, stream);
  const float loss = compare_losses(backend, expected, found);
  fmt::print("bytes that differ {} of {}, by more than one code {}; transposed ones {}; losses by {:.2g}\n",
             differences.bytes, kLogits, differences.far, differences.transposed, loss);
  // An exponential that the experiment flushes to zero counts as a zero, not as underflowed.
  print_traces(backend, "two passes", expected);
  print_traces(backend, "one read", found);
  return differences.far == 0 && differences.transposed == 0 && loss <= kLossBound;
}

class Stopwatch {
 public:
  explicit Stopwatch(DeviceStream stream) : stream_(stream) {
    check(cudaEventCreate(&begin_), "creating an event");
    check(cudaEventCreate(&end_), "creating an event");
  }
  ~Stopwatch() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  template <typename F>
  double milliseconds_of(const F& work) {
    check(cudaEventRecord(begin_, stream_), "recording an event");
    work();
    check(cudaEventRecord(end_, stream_), "recording an event");
    check(cudaEventSynchronize(end_), "waiting for the device");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "reading a time");
    return milliseconds;
  }

 private:
  DeviceStream stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

void print_time(const char* name, double milliseconds, double copy_milliseconds) {
  const double share = 4.0 * kLogits / milliseconds / (2.0 * kCopyBytes / copy_milliseconds);
  fmt::print("{:10} {:.3f} ms, {:.2f} of a copy\n", name, milliseconds, share);
}

int run() {
  auto runtime = make_runtime();
  const DeviceStream stream = runtime->stream();
  DeviceBackend backend(std::move(runtime), nullptr);
  fmt::print("{}\n", backend.describe());
  const Tensor logits = normal_logits(backend), targets = scattered_targets(backend),
               fault = filled(backend, DType::i32, {1}, INT_MAX),
               workspace = backend.allocate(DType::u8, {once::workspace_bytes(kRows, kCols)}),
               from = filled(backend, DType::u8, {kCopyBytes}, 1),
               to = backend.allocate(DType::u8, {kCopyBytes});
  const Results expected = allocate_results(backend), found = allocate_results(backend);
  const once::CrossEntropy call = call_of(logits, targets, fault, found);
  const auto two_passes = [&] {
    backend.cross_entropy(logits, targets, kGradientScale, expected.losses, expected.gradient);
  };
  const auto one_read = [&] {
    once::launch_cross_entropy_once(call, workspace.data<std::uint8_t>(), stream);
  };
  two_passes();
  one_read();
  if (!check_results(backend, expected, found, stream)) return EXIT_FAILURE;

  Stopwatch watch(stream);
  std::vector<double> two, one, copy;
  for (int round = 0; round < kRounds; ++round) {
    copy.push_back(watch.milliseconds_of([&] {
      check(cudaMemcpyAsync(to.raw(), from.raw(), kCopyBytes, cudaMemcpyDeviceToDevice, stream), "copying");
    }));
    two.push_back(watch.milliseconds_of(two_passes));
    one.push_back(watch.milliseconds_of(one_read));
  }
  print_time("two passes", median(two), median(copy));
  print_time("one read", median(one), median(copy));
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace quaver::cuda

int main() {
  try {
    return quaver::cuda::run();
  } catch (const quaver::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return EXIT_FAILURE;
  }
}
