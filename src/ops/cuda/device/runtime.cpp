#include "ops/cuda/device/runtime.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "ops/cuda/chip_types.h"
#include "ops/cuda/device/errors.h"
#include "ops/cuda/device_messages.h"

namespace quaver::cuda {
namespace {

constexpr std::size_t kStagingBytes = 4 << 20;
constexpr std::size_t kChunkBytes = std::size_t{512} << 20;

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

[[noreturn]] void fail_for_memory_of_device(std::size_t wanted, const MemoryUse& use) {
  std::size_t available = 0, total = 0;
  cudaMemGetInfo(&available, &total);
  fail_for_memory(wanted, use.in_use, available, total);
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

class GraphRecording final : public Recording {
 public:
  GraphRecording(cudaGraphExec_t graph, cudaStream_t stream) : graph_(graph), stream_(stream) {}
  ~GraphRecording() override { cudaGraphExecDestroy(graph_); }
  GraphRecording(const GraphRecording&) = delete;
  GraphRecording& operator=(const GraphRecording&) = delete;
  void replay() override { check(cudaGraphLaunch(graph_, stream_), "launching a CUDA graph"); }

 private:
  cudaGraphExec_t graph_;
  cudaStream_t stream_;
};

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
  DeviceStream stream() const override { return stream_; }
  MemorySource memory() override {
    return {Device::cuda, kChunkBytes, allocate_on_device, [](void* block) { cudaFree(block); },
            fail_for_memory_of_device};
  }
  MemorySource host_memory() override { return pinned_memory(); }
  bool needs_transposed_fp8() const override { return !takes_any_fp8_layout(chip()); }
  ChipSize chip_size() const override {
    return {properties_.multiProcessorCount, properties_.sharedMemPerBlockOptin};
  }
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

  Recorded record(const WorkList& list) override {
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "beginning a CUDA graph");
    std::string failure;
    try {
      list.start();
    } catch (const Error& error) {
      failure = error.what();
    }
    cudaGraph_t graph = nullptr;
    cudaError_t status = cudaStreamEndCapture(stream_, &graph);
    cudaGraphExec_t instance = nullptr;
    if (status == cudaSuccess && failure.empty()) status = cudaGraphInstantiate(&instance, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (status == cudaSuccess && failure.empty())
      return {std::make_unique<GraphRecording>(instance, stream_), ""};
    cudaGetLastError();  // not sticky: nothing ran
    return {nullptr,
            fmt::format("no CUDA graph: {}", failure.empty() ? cudaGetErrorString(status) : failure)};
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
  DeviceSearch search;
  search.built_for = CUDART_VERSION;
  cudaDriverGetVersion(&search.driver_serves);
  const cudaError_t status = cudaGetDeviceCount(&search.devices);
  search.driver_too_old = status == cudaErrorInsufficientDriver;
  if (status != cudaSuccess) search.error = cudaGetErrorString(status);
  require_device(search);
  check(cudaSetDevice(0), "choosing the first GPU");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "reading the device's properties");
  require_chip(properties.name, properties.major, properties.minor);
  return std::make_unique<CudaRuntime>(properties, search.driver_serves);
}

}  // namespace quaver::cuda
