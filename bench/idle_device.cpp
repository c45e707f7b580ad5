#include "idle_device.h"

#include <sys/mman.h>

#include <array>
#include <cstring>
#include <new>
#include <vector>

#include "ops/cuda/device_backend.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/product.h"

namespace quaver {
namespace {

/// Kernels are free functions in CUDA's spelling, so the place where they are counted cannot be handed to them.
struct Counting {
  idle::Counts* counts = nullptr;
  bool replays = false;
} counting;

void count(const char* name) {
  if (!counting.counts) return;
  idle::Started& started = (*counting.counts)[name];
  ++(counting.replays ? started.listed : started.alone);
}

}  // namespace

// What launch.h asks of an emulation. No thread of a kernel ever runs.
namespace emulation {

void run(const char* name, dim3, dim3, std::size_t, const std::function<void()>&) {
  count(name);
}
void* dynamic_shared_memory() {
  return nullptr;
}
void wait_for_block() {}
void wait_until(const std::function<bool()>&) {}
const std::array<const void*, kLanes>& meet_warp(const void*) {
  static const std::array<const void*, kLanes> nothing{};
  return nothing;
}
void leave_warp() {}
int lane() {
  return 0;
}

}  // namespace emulation

namespace idle {
namespace {

class IdleRecording final : public cuda::Recording {
 public:
  explicit IdleRecording(const cuda::WorkList& list) {
    if (counting.counts) list_ = list;
  }
  void replay() override {
    counting.replays = true;
    list_.start();
    counting.replays = false;
  }

 private:
  cuda::WorkList list_;
};

/// Zero, and taken from the system where it is touched: large models fit.
MemorySource untouched_memory() {
  MemorySource source = quaver::host_memory();
  source.chunk_bytes = std::size_t{512} << 20;
  source.allocate = [](std::size_t bytes) -> void* {
    // The size is kept before the block, for munmap.
    constexpr std::size_t kPage = 4096;
    void* const memory = mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    *static_cast<std::size_t*>(memory) = bytes + kPage;
    return static_cast<char*>(memory) + kPage;
  };
  source.release = [](void* block) {
    char* const memory = static_cast<char*>(block) - 4096;
    munmap(memory, *reinterpret_cast<std::size_t*>(memory));
  };
  return source;
}

class IdleRuntime final : public cuda::DeviceRuntime {
 public:
  std::string describe() const override { return "cuda (a device that computes nothing)"; }
  cuda::DeviceStream stream() const override { return nullptr; }
  MemorySource memory() override { return untouched_memory(); }
  MemorySource host_memory() override { return quaver::host_memory(); }
  // As on an H100.
  bool needs_transposed_fp8() const override { return true; }
  cuda::ChipSize chip_size() const override { return {132, 227 << 10}; }
  bool has_warpgroup_products() const override { return true; }
  void copy_from_host(const void*, void*, std::size_t) override { count("copy from the host"); }
  void copy_to_host(const void* source, void* destination, std::size_t bytes) override {
    count("copy to the host");
    std::memcpy(destination, source, bytes);
  }
  void copy_rows(const void*, std::size_t, void*, std::size_t, std::size_t, std::size_t) override {
    count("copy");
  }
  cuda::Recorded record(const cuda::WorkList& list) override {
    return {std::make_unique<IdleRecording>(list), ""};
  }
};

/// Takes what cuBLASLt takes on an H100.
class IdleLibrary final : public cuda::MatrixLibrary {
 public:
  std::string why_no_blocks(cuda::FactorScales scales) const override {
    return scales == cuda::FactorScales::mx ? "it takes what an H100 takes" : "";
  }
  std::optional<bool> can_multiply(const cuda::Product& p) const override {
    if (p.left.dtype == DType::f32) return p.out_dtype == DType::f32;
    if (!is_fp8(p.left.dtype)) return true;
    const bool whole = p.size.m % 16 == 0 && p.size.n % 16 == 0 && p.size.k % 16 == 0;
    if (is_in_blocks(p) && !(suits_library(p) && p.size.k % contraction_block(p) == 0)) return false;
    return whole && fits(p.left) && fits(p.right);
  }
  bool multiply(const cuda::Product& product, Backend&) override {
    if (!*can_multiply(product)) return false;
    count("gemm");
    return true;
  }
  std::string describe(const cuda::Product&) const override { return "nothing"; }

 private:
  static bool fits(const cuda::Factor& factor) {
    return !factor.swapped && factor.stride % 16 == 0 &&
           reinterpret_cast<std::uintptr_t>(factor.data) % 16 == 0;
  }
};

}  // namespace

std::shared_ptr<Backend> make_backend(Counts* counts) {
  counting = {counts, false};
  return std::make_shared<cuda::DeviceBackend>(std::make_unique<IdleRuntime>(),
                                               std::make_unique<IdleLibrary>());
}

}  // namespace idle
}  // namespace quaver
