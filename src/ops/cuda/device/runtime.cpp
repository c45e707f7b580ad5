#include "ops/cuda/device/runtime.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "ops/cuda/device/errors.h"

namespace quaver::cuda {
namespace {

constexpr std::size_t kStagingBytes = 4 << 20;

#if defined(QUAVER_SM90A)
constexpr bool kCompiledForSm90a = true;
#else
constexpr bool kCompiledForSm90a = false;
#endif

/// Pinned memory through which copies from the host pass: two halves, so that one is filled while the other
/// is copied. A half is filled again when its last copy is over.
class Staging {
 public:
  explicit Staging(cudaStream_t stream) : stream_(stream) {
    check(cudaMallocHost(&memory_, 2 * kStagingBytes), "allocating pinned memory");
    for (cudaEvent_t& event : copied_)
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  }
  ~Staging() {
    for (cudaEvent_t event : copied_) cudaEventDestroy(event);
    cudaFreeHost(memory_);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  void copy_from_host(const char* source, char* destination, std::size_t bytes) {
    while (bytes > 0) {
      if (used_ == kStagingBytes) begin_half();
      const std::size_t part = std::min(bytes, kStagingBytes - used_);
      char* const at = static_cast<char*>(memory_) + half_ * kStagingBytes + used_;
      std::memcpy(at, source, part);
      check(cudaMemcpyAsync(destination, at, part, cudaMemcpyHostToDevice, stream_), "copying to the device");
      used_ = std::min(kStagingBytes, (used_ + part + 15) / 16 * 16);
      source += part;
      destination += part;
      bytes -= part;
    }
  }

 private:
  void begin_half() {
    check(cudaEventRecord(copied_[half_], stream_), "recording an event");
    half_ = 1 - half_;
    used_ = 0;
    check(cudaEventSynchronize(copied_[half_]), "copying to the device");
  }

  cudaStream_t stream_;
  void* memory_ = nullptr;
  cudaEvent_t copied_[2] = {};
  int half_ = 0;
  std::size_t used_ = 0;
};

std::string gib(std::size_t bytes) {
  return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1 << 30));
}

[[noreturn]] void fail_for_memory(std::size_t wanted, const MemoryUse& use) {
  std::size_t available = 0, total = 0;
  cudaMemGetInfo(&available, &total);
  fail(ErrorKind::failure,
       "cuda: out of memory: {} wanted, {} in use by this run, {} of the device's {} free. Use a smaller "
       "train.batch (more micro-batches per step keep the step's size), a shorter model.context, or a "
       "smaller model",
       gib(wanted), gib(static_cast<std::size_t>(use.in_use)), gib(available), gib(total));
}

void* allocate_on_device(std::size_t bytes) {
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky
    return nullptr;
  }
  check(status, "allocating device memory");
  return block;
}

class CudaRuntime final : public DeviceRuntime {
 public:
  CudaRuntime(const cudaDeviceProp& properties, int driver)
      : properties_(properties), driver_(driver), stream_(make_stream()), staging_(stream_) {}
  ~CudaRuntime() override { cudaStreamSynchronize(stream_); }

  std::string describe() const override {
    return fmt::format("cuda ({}, sm_{}, {:.0f} GiB, driver for CUDA {}.{})", properties_.name, chip(),
                       static_cast<double>(properties_.totalGlobalMem) / (1 << 30), driver_ / 1000,
                       driver_ % 1000 / 10);
  }
  Stream stream() const override { return stream_; }
  MemorySource memory() override {
    return {Device::cuda, allocate_on_device, [](void* block) { cudaFree(block); }, fail_for_memory};
  }
  bool needs_transposed_fp8() const override { return chip() / 10 != 10; }
  bool has_warpgroup_products() const override { return chip() == 90 && kCompiledForSm90a; }

  void copy_from_host(const void* source, void* destination, std::size_t bytes) override {
    staging_.copy_from_host(static_cast<const char*>(source), static_cast<char*>(destination), bytes);
  }
  void copy_to_host(const void* source, void* destination, std::size_t bytes) override {
    check(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDeviceToHost, stream_),
          "copying to the host");
    check(cudaStreamSynchronize(stream_), "waiting for the device");
  }
  void copy_rows(const void* source, std::size_t source_pitch, void* destination,
                 std::size_t destination_pitch, std::size_t width, std::size_t rows) override {
    check(cudaMemcpy2DAsync(destination, destination_pitch, source, source_pitch, width, rows,
                            cudaMemcpyDeviceToDevice, stream_),
          "copying on the device");
  }

 private:
  static cudaStream_t make_stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    return stream;
  }
  int chip() const { return 10 * properties_.major + properties_.minor; }

  cudaDeviceProp properties_;
  int driver_;
  cudaStream_t stream_;
  Staging staging_;
};

constexpr int kOldestChip = 89;

}  // namespace

MemorySource pinned_memory() {
  MemorySource source = host_memory();
  source.allocate = [](std::size_t bytes) {
    void* block = nullptr;
    check(cudaMallocHost(&block, bytes), "allocating pinned memory");
    return block;
  };
  source.release = [](void* block) { cudaFreeHost(block); };
  return source;
}

std::unique_ptr<DeviceRuntime> make_runtime() {
  int driver = 0, devices = 0;
  cudaDriverGetVersion(&driver);
  require(driver > 0,
          "backend: cuda needs NVIDIA's driver, which is not installed here; choose backend = \"cpu\"");
  const cudaError_t status = cudaGetDeviceCount(&devices);
  require(
      status != cudaErrorInsufficientDriver,
      "backend: the NVIDIA driver is too old: it serves CUDA {}.{}, this build needs {}.{} or a later minor; "
      "update the driver, or choose backend = \"cpu\"",
      driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, 0);
  require(
      status == cudaSuccess && devices > 0, "backend: cuda finds no GPU here ({}); choose backend = \"cpu\"",
      status == cudaSuccess ? "none visible; CUDA_VISIBLE_DEVICES may hide it" : cudaGetErrorString(status));
  check(cudaSetDevice(0), "choosing the first GPU");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "reading the device's properties");
  require(10 * properties.major + properties.minor >= kOldestChip,
          "backend: {} is an sm_{}{}; cuda needs sm_89 (Ada) or later, the first with FP8; choose backend = "
          "\"cpu\"",
          properties.name, properties.major, properties.minor);
  return std::make_unique<CudaRuntime>(properties, driver);
}

}  // namespace quaver::cuda
