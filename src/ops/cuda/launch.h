/// How device code is written and launched.
///
/// A kernel is an ordinary `__global__` function (template) in CUDA's own spelling, in a .cuh or .cu file.
/// nvcc compiles it for the GPU. Any other compiler gets tests/support/launch_emulation.h instead, which
/// defines that spelling for the host: the threads of a block are fibers that take turns at barriers and
/// shuffles, blocks run one after another. So every kernel, and the host code that launches it, is tested
/// without a GPU.
///
/// What the emulation knows, and kernels may use:
/// - __global__, __device__, __launch_bounds__, __grid_constant__, `__shared__` variables of trivial types, threadIdx, blockIdx,
///   blockDim, gridDim, __syncthreads, __syncwarp, and of all 32 lanes (mask kAllLanes) __shfl_sync,
///   __shfl_xor_sync, __shfl_down_sync, __shfl_up_sync, __ballot_sync;
/// - atomicAdd, atomicMax, atomicMin, atomicOr on 32- and 64-bit integers;
/// - C's float functions (fmaxf, expf, ...), rsqrtf, __float_as_uint, __uint_as_float and their int forms,
///   min, max, __ldg, uint2, uint4, float2, float4;
/// - an instruction of another kind goes into a small device function with a second body for the emulation
///   (#ifdef __CUDACC__ ... #else); emulation::with_warp shows such a body the operands of all 32 lanes.
///
/// nvcc compiles with -fmad=false: sums and products are rounded one by one, as on the host; a kernel that
/// wants a fused operation calls fmaf.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "support/launch_emulation.h"
#endif

#include "ops/cuda/stream.h"
#include "ops/cuda/work_queue.h"
#include "quaver/tensor.h"

namespace quaver::cuda {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

struct LaunchShape {
  dim3 blocks, threads;
  std::size_t shared_bytes = 0;  ///< of dynamic_shared_memory(); more than 48 KiB is asked for where needed
};

/// The block's dynamic shared memory, 1024-byte aligned.
__device__ inline void* dynamic_shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(1024) unsigned char quaver_dynamic_shared[];
  return quaver_dynamic_shared;
#else
  return emulation::dynamic_shared_memory();
#endif
}

/// A real element as FP32, and FP32 rounded to a real type: the same bits as to_float and to_bf16 on the
/// host.
__device__ inline float as_float(float x) {
  return x;
}
__device__ inline float as_float(bf16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
template <typename T>
__device__ T round_as(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
#ifdef __CUDACC__
    std::uint16_t rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
    return {x == x ? rounded : std::uint16_t{0x7FC0}};
#else
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {0x7FC0};
    return {static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
#endif
  }
}

/// Two floats rounded to BF16, the first in the lower half. A NaN becomes one, whose bits a device chooses.
__device__ inline std::uint32_t pack_pair(float low, float high) {
#ifdef __CUDACC__
  std::uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return round_as<bf16>(low).bits | static_cast<std::uint32_t>(round_as<bf16>(high).bits) << 16;
#endif
}

#ifdef __CUDACC__

/// Throws Error(failure) that names the kernel if its launch, or an earlier kernel, failed.
void check_launch(const char* name);
/// Lets `kernel` use that many bytes of dynamic shared memory.
void allow_shared_memory(const void* kernel, const char* name, std::size_t bytes);

template <typename... Parameters>
void start_kernel(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape,
                  DeviceStream stream, const Parameters&... arguments) {
  constexpr std::size_t kAlwaysAllowed = 48 * 1024;
  if (shape.shared_bytes > kAlwaysAllowed) {
    allow_shared_memory(reinterpret_cast<const void*>(kernel), name, shape.shared_bytes);
  }
  kernel<<<shape.blocks, shape.threads, shape.shared_bytes, stream>>>(arguments...);
  check_launch(name);
}

#else

template <typename... Parameters>
void start_kernel(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, DeviceStream,
                  const Parameters&... arguments) {
  emulation::run(name, shape.blocks, shape.threads, shape.shared_bytes, [&] { kernel(arguments...); });
}

#endif

/// Queues a kernel; nothing is launched for an empty grid. `name` is for messages.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape, Stream stream,
            const Arguments&... arguments) {
  if (shape.blocks.x == 0 || shape.blocks.y == 0 || shape.blocks.z == 0) return;
  const DeviceStream device_stream = stream ? stream->device_stream() : nullptr;
  const auto queue = [&](const Parameters&... values) {
    if (!stream || !stream->is_listing()) return start_kernel(name, kernel, shape, device_stream, values...);
    const auto start = [=] { start_kernel(name, kernel, shape, device_stream, values...); };
    stream->add(name, start, kernel, shape, values...);
  };
  queue(arguments...);
}

}  // namespace quaver::cuda
