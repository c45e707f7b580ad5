/// An experiment: cross entropy and its gradient, as E5M2 bytes and transposed ones, with one read of memory. It is faster than the two
/// passes of `Backend::cross_entropy`, beside which bench_cross_entropy_once runs it, and not the product's yet.
///
/// A block's warps have roles. Five sum parts, 2048 logits of a row each: the largest, and the sum of exponentials. One joins a row's parts
/// into its logarithm. Four own a strip of 64 columns each, for good, and write it downwards, a group of 32 rows at a time, as logarithms
/// come. All blocks draw parts and rows from two counters, in the order of rows, but a block starts a part only if its own strips are at
/// most kWindow groups behind: that far apart, the second read of a group still finds it in the second-level cache. What is not there yet
/// is a NaN of all ones, so the numbers themselves tell, without a fence or a barrier between blocks. Each waits for earlier rows only:
/// blocks need not all run at once.
///
/// The gradient's scale is part of the exponent, so that few bytes differ from those of the two passes, by one code.
///
/// Missing: rows that are no multiple of 128, and columns of 2048; E4M3; FP32 logits; a gradient_scale of 0 or below; counts of what
/// saturates; zeros for a row with a NaN and without a target; the launch emulation's second bodies of instructions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "cross_entropy_once_rows.cuh"
#include "ops/cuda/device/errors.h"

namespace quaver::cuda::once {

/// Of a warp's tiles; CastTrace says what the second is.
struct TileCounts {
  unsigned zeros = 0, zero_bytes_x128 = 0;
};

__device__ inline std::uint64_t keep_no_longer() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ inline void store_passing(std::uint8_t* to, unsigned a, unsigned b) {
  asm volatile("st.global.cs.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(a), "r"(b) : "memory");
}
__device__ inline void store_passing(std::uint8_t* to, const Pack<bf16, 8>& run) {
  asm volatile("st.global.cs.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(run.words[0]), "r"(run.words[1]),
               "r"(run.words[2]), "r"(run.words[3])
               : "memory");
}
__device__ inline float read_number(const float* from) {
  float number;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(number) : "l"(from) : "memory");
  return number;
}
__device__ inline unsigned e5m2_word(float a, float b, float c, float d) {
  unsigned word;
  asm("{.reg .b16 low, high; cvt.rn.satfinite.e5m2x2.f32 low, %2, %1; cvt.rn.satfinite.e5m2x2.f32 high, %4, "
      "%3; mov.b32 %0, {low, high};}"
      : "=r"(word)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return word;
}

/// Where the transposed bytes of a column of a strip begin in shared memory.
__device__ inline int run_at(int column) {
  return column * kRunBytes + column / 8 * 16;
}

/// Numbers of a pack that are zeros before the cast.
__device__ inline unsigned count_zeros(unsigned (&words)[4], float offset) {
  float x[8];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    // Other words to the compiler, or it keeps all exponentials in registers.
    asm volatile("" : "+r"(words[w]));
    x[2 * w] = low_half(words[w]);
    x[2 * w + 1] = high_half(words[w]);
  }
  const float smallest =
      fminf(fminf(fminf(x[0], x[1]), fminf(x[2], x[3])), fminf(fminf(x[4], x[5]), fminf(x[6], x[7])));
  unsigned zeros = 0;
  constexpr float kNeverZero = -120.0f;  // as an exponent
  if (fmaf(smallest, kLog2E, offset) < kNeverZero && offset > -kInfinity) {
#pragma unroll
    for (int e = 0; e < 8; ++e)
      zeros += rounded_to_bf16(power_of_two(fmaf(x[e], kLog2E, offset))) == 0 ? 1 : 0;
  }
  return zeros;
}

/// 0x80 where a byte is 0; none has a sign.
__device__ inline unsigned zero_bytes_of(unsigned word) {
  return ~(word + 0x7F7F7F7Fu) & 0x80808080u;
}

/// Casts and stores a lane's pack; `scaled` is what it casts. Returns zero_bytes_x128 with its own added.
__device__ inline unsigned write_pack(std::uint8_t* to, const Pack<bf16, 8>& z, float offset, float factor,
                                      unsigned zero_bytes_x128, float (&scaled)[8]) {
  float x[8];
  widen(z, x);
#pragma unroll
  for (int e = 0; e < 8; ++e) scaled[e] = rounded_to_bf16(power_of_two(fmaf(x[e], kLog2E, offset))) * factor;
  const unsigned low = e5m2_word(scaled[0], scaled[1], scaled[2], scaled[3]),
                 high = e5m2_word(scaled[4], scaled[5], scaled[6], scaled[7]);
  store_passing(to, low, high);
  return add_bytes(zero_bytes_of(high), add_bytes(zero_bytes_of(low), zero_bytes_x128));
}

/// A lane's 8 rows of 8: bytes go to memory, `columns` gets those of each column.
__device__ inline void write_rows(std::uint8_t* to, std::int64_t stride, Pack<bf16, 8> (&z)[8],
                                  const float (&offsets)[8], float factor, TileCounts& counts,
                                  unsigned (&columns)[8][2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    unsigned zero_bytes_x128 = 0, low[8];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      float scaled[2][8];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int m = half * 4 + pair * 2 + r;
        zero_bytes_x128 = write_pack(to, z[m], offsets[m], factor, zero_bytes_x128, scaled[r]);
        to += stride;
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const unsigned two = fp8_pair(Fp8::e5m2, scaled[0][e], scaled[1][e]);
        if (pair == 0) {
          low[e] = two;
        } else {
          columns[e][half] = low[e] | two << 16;
        }
      }
    }
    counts.zero_bytes_x128 += zero_bytes_x128;
    if (zero_bytes_x128) {
#pragma unroll
      for (int m = half * 4; m < half * 4 + 4; ++m) counts.zeros += count_zeros(z[m].words, offsets[m]);
    }
  }
}

/// Puts the gradient at a row's target where write_rows has put its probability's.
__device__ __forceinline__ void write_target(const Arguments& args, int row, int target, std::uint32_t runs,
                                             float factor, TileCounts& counts) {
  const float offset = read_number(args.offsets + row);
  const float logit = as_float(args.logits.data[row * args.logits.stride + target]);
  const float exact = power_of_two(fmaf(logit, kLog2E, offset));
  const float other = rounded_to_bf16(exact), x = rounded_to_bf16(exact - args.gradient_scale);
  const std::uint8_t was = fp8_byte(Fp8::e5m2, other * factor), byte = fp8_byte(Fp8::e5m2, x * factor);
  counts.zeros += (x == 0) - (other == 0);
  counts.zero_bytes_x128 += 128 * (((byte & 0x7F) == 0) - ((was & 0x7F) == 0));
  args.bytes.data[row * args.bytes.stride + target] = byte;
  const std::uint32_t at = runs + run_at(target % kStripCols) + row % kRunBytes;
  asm volatile("st.shared.u8 [%0], %1;" ::"r"(at), "r"(unsigned{byte}) : "memory");
}

/// Brings the tiles of a strip to shared memory, one after the other; every lane its own 8 packs, for which it waits itself.
struct TileReader {
  const bf16* from;
  std::int64_t stride;
  int group, groups;
  std::uint64_t policy;

  __device__ void start(std::uint32_t to) {
    if (group < groups) {
      const bf16* row = from;
#pragma unroll
      for (int m = 0; m < 8; ++m) {
        copy_16_bytes(to + m * 512, row, true, policy);
        row += stride;
      }
      from += kGroupRows * stride;
    }
    ++group;
    end_copies();
  }
};

/// What a lane needs of the row of a group that is its own.
struct LaneRow {
  float offset;
  int target;

  __device__ void read(const Arguments& args, int row) {
    offset = read_number(args.offsets + row);
    asm volatile("ld.global.s32 %0, [%1];" : "=r"(target) : "l"(args.targets + row));
  }
};

/// The offsets of the 8 rows of a lane's from `down` on. `own`: what the lane found at `from`; it looks again until something is there.
__device__ inline void share_offsets(const float* from, float own, int down, float (&offsets)[8]) {
  while (__float_as_uint(own) == kMissing) own = read_number(from);
  __syncwarp();
#pragma unroll
  for (int m = 0; m < 8; ++m) offsets[m] = __shfl_sync(kAllLanes, own, down + m);
}

/// What write_rows gave, to shared memory.
__device__ inline void stage_columns(std::uint32_t to, const unsigned (&columns)[8][2]) {
#pragma unroll
  for (int e = 0; e < 8; ++e)
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to + e * kRunBytes), "r"(columns[e][0]),
                 "r"(columns[e][1])
                 : "memory");
}

/// Stores kRunGroups groups of them.
__device__ inline void store_runs(std::uint8_t* to, std::int64_t stride, std::uint32_t runs, int lane) {
#pragma unroll 4
  for (int n = 0; n < kStripCols; n += 4) {
    store_passing(to, shared_pack(runs + run_at(n + lane / 8) + lane % 8 * 16));
    to += 4 * stride;
  }
}

__device__ inline void count_tiles(unsigned long long* counters, const TileCounts& counts, int lane) {
  const unsigned zeros = warp_sum(counts.zeros), zero_bytes = warp_sum(counts.zero_bytes_x128) / 128;
  if (lane != 0) return;
  if (zeros) atomicAdd(counters + kCastZeros, static_cast<unsigned long long>(zeros));
  if (zeros != zero_bytes)
    atomicAdd(counters + kCastUnderflowed, static_cast<unsigned long long>(zero_bytes) - zeros);
}

/// By a warp, whose lanes have 8 columns of 8 rows of a tile. `runs`, `stages`, `progress`: shared addresses.
__device__ inline void write_strip(const Arguments& args, int lane, std::uint32_t runs, std::uint32_t stages,
                                   std::uint32_t progress, int strip) {
  const int down = lane / 8 * 8, across = lane % 8 * 8;
  const std::uint64_t policy = keep_no_longer();
  const float factor = *args.scale;
  TileCounts counts;
  // Through a shuffle, as in sum_parts.
  const std::uint32_t begin = __shfl_sync(kAllLanes, stages + lane * 16, lane),
                      end = begin + kDepth * kStageBytes;
  TileReader reader{args.logits.data + down * args.logits.stride + strip * kStripCols + across,
                    args.logits.stride, 0, args.groups, policy};
#pragma unroll
  for (int d = 0; d < kDepth; ++d) reader.start(begin + d * kStageBytes);
  std::uint32_t own = begin;
  LaneRow next;
  next.read(args, lane);
  std::uint8_t* bytes = args.bytes.data + down * args.bytes.stride + strip * kStripCols + across;
  std::uint8_t* transposed =
      args.transposed.data + (strip * kStripCols + lane / 8) * args.transposed.stride + lane % 8 * 16;
  for (int g = 0; g < args.groups; ++g) {
    wait_for_copies_but<kDepth - 1>();
    if (lane == 0) asm volatile("red.shared.add.u32 [%0], 1;" ::"r"(progress) : "memory");
    const LaneRow row = next;
    const int hot = row.target - strip * kStripCols;
    // Here, and not where it is needed, or ptxas has it wait at the end of the iteration.
    if (g + 1 < args.groups) next.read(args, (g + 1) * kGroupRows + lane);
    Pack<bf16, 8> z[8];
#pragma unroll
    for (int m = 0; m < 8; ++m) z[m] = shared_pack(own + m * 512);
    reader.start(own);
    own += kStageBytes;
    if (own == end) own = begin;
    float offsets[8];
    share_offsets(args.offsets + g * kGroupRows + lane, row.offset, down, offsets);
    unsigned columns[8][2];
    write_rows(bytes, args.bytes.stride, z, offsets, factor, counts, columns);
    bytes += kGroupRows * args.bytes.stride;
    stage_columns(runs + run_at(across) + g % kRunGroups * kGroupRows + down, columns);
    __syncwarp();
    if (static_cast<unsigned>(hot) < kStripCols)
      write_target(args, g * kGroupRows + lane, hot + strip * kStripCols, runs, factor, counts);
    if (g % kRunGroups == kRunGroups - 1) {
      __syncwarp();
      store_runs(transposed, args.transposed.stride, runs, lane);
      transposed += kRunBytes;
      __syncwarp();
    }
  }
  count_tiles(args.counters, counts, lane);
}

__global__ void __launch_bounds__(kThreads, 1) cross_entropy_once(const __grid_constant__ Arguments args) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ unsigned tiles_begun;
  if (threadIdx.x == 0) tiles_begun = 0;
  __syncthreads();
  const int lane = threadIdx.x % 32, warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *args.scale_inv = 1.0f / *args.scale;
    atomicAdd(args.counters + kCastElements, static_cast<unsigned long long>(args.rows) * args.cols);
  }
  const std::uint32_t runs = __shfl_sync(kAllLanes, shared_address(memory), lane),
                      progress = shared_address(&tiles_begun);
  const std::uint32_t stages = runs + kTileWarps * kRunsBytes,
                      parts = stages + kTileWarps * kDepth * kStageBytes;
  const int first = static_cast<std::int64_t>(blockIdx.x) * args.strips / gridDim.x,
            last = static_cast<std::int64_t>(blockIdx.x + 1) * args.strips / gridDim.x;
  if (warp < kTileWarps) {
    if (first + warp < last)
      write_strip(args, lane, runs + warp * kRunsBytes, stages + warp * kDepth * kStageBytes, progress,
                  first + warp);
  } else if (warp < kTileWarps + kSumWarps) {
    sum_parts(args, lane, parts + (warp - kTileWarps) * kStageBytes, progress, last - first);
  } else {
    join_rows(args, lane);
  }
}

constexpr std::size_t kTicketBytes = kTickets * sizeof(unsigned);

inline std::int64_t workspace_bytes(std::int64_t rows, std::int64_t cols) {
  return static_cast<std::int64_t>(kTicketBytes) + rows * (4 + 8 * blocks_for(cols, kPartCols));
}

/// Queues it. `workspace`: workspace_bytes, on 16 bytes.
inline void launch_cross_entropy_once(const CrossEntropy& call, std::uint8_t* workspace,
                                      DeviceStream stream) {
  int device = 0, blocks = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device),
        "asking for multiprocessors");
  Arguments args{call};
  args.groups = call.rows / kGroupRows;
  args.strips = call.cols / kStripCols;
  args.row_parts = static_cast<int>(blocks_for(call.cols, kPartCols));
  args.parts_in_all = call.rows * args.row_parts;
  args.row_magic = static_cast<unsigned>(((1ull << 32) + args.row_parts - 1) / args.row_parts);
  require(call.rows % kRunBytes == 0 && call.cols % kPartCols == 0 && args.strips <= blocks * kTileWarps &&
              args.row_parts > 1 && args.row_parts * std::int64_t{args.parts_in_all} < 1ll << 32,
          "cross_entropy_once: logits of {} x {} on {} multiprocessors", call.rows, call.cols, blocks);
  args.tickets = reinterpret_cast<unsigned*>(workspace);
  args.offsets = reinterpret_cast<float*>(workspace + kTicketBytes);
  args.parts = reinterpret_cast<uint2*>(args.offsets + call.rows);
  check(cudaMemsetAsync(workspace, 0, kTicketBytes, stream), "clearing tickets");
  check(cudaMemsetAsync(workspace + kTicketBytes, kMissing & 0xFF,
                        workspace_bytes(call.rows, call.cols) - kTicketBytes, stream),
        "clearing what rows are joined from");
  start_kernel("cross_entropy_once", cross_entropy_once,
               {static_cast<unsigned>(blocks), kThreads, kSharedBytes}, stream, args);
}

}  // namespace quaver::cuda::once
