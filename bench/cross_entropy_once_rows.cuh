/// The warps of cross_entropy_once.cuh that sum parts of rows and join them.
#pragma once

#include <cstdint>
#include <limits>

#include "ops/cuda/async_copy.cuh"
#include "ops/cuda/cast_trace.cuh"
#include "ops/cuda/exponential.cuh"

namespace quaver::cuda::once {

constexpr int kTileWarps = 4, kSumWarps = 5, kThreads = 32 * (kTileWarps + kSumWarps + 1);
constexpr int kPartCols = 2048;
constexpr int kGroupRows = 32, kStripCols = 64;  // of a tile
constexpr int kDepth = 6;          // tiles of a warp in shared memory, most of them on their way
constexpr int kWindow = 7;         // groups; with more the second read misses, with fewer warps are idle
constexpr unsigned kPause = 40;    // ns, between looks for what is not there yet
constexpr int kStageBytes = 4096;  // of a tile, of a part
static_assert(kStageBytes == 2 * kPartCols && kStageBytes == 2 * kGroupRows * kStripCols);
// Transposed bytes of four groups are stored at once: how wide these stores are decides the time. 16 bytes after every 8 columns keep
// lanes on different banks.
constexpr int kRunGroups = 4, kRunBytes = kRunGroups * kGroupRows;
constexpr int kRunsBytes = kStripCols * kRunBytes + kStripCols / 8 * 16;
constexpr int kSharedBytes = kTileWarps * (kRunsBytes + kDepth * kStageBytes) + kSumWarps * kStageBytes;

constexpr unsigned kMissing = 0xFFFFFFFFu;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum Ticket : int { kPartTicket = 0, kRowTicket = 32, kTickets = 64 };  // on lines of their own

/// Operands and results of Backend::cross_entropy. Matrices lie on 16 bytes, and so do their rows.
struct CrossEntropy {
  Matrix<bf16> logits;
  int rows, cols;
  const std::int32_t* targets;
  float gradient_scale;
  float* losses;
  int* fault;  ///< the smallest row whose target is no class
  Matrix<std::uint8_t> bytes, transposed;
  const float* scale;
  float *scale_inv, *amax;
  unsigned long long* counters;  ///< kCastCounters
};
/// The same for the kernel.
struct Arguments : CrossEntropy {
  int groups, strips, row_parts, parts_in_all;
  unsigned row_magic;  ///< the row of a part is part * row_magic / 2^32
  unsigned* tickets;
  uint2* parts;    ///< bits of a part's largest logit and of its sum of e^(logit - largest)
  float* offsets;  ///< of every row: a gradient is 2^(logit log2(e) + offset)
};

struct Part {
  float largest, sum;
};

__device__ inline std::uint64_t keep_longest() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
/// Zeros if not `inside`.
__device__ inline void copy_16_bytes(std::uint32_t to, const void* from, bool inside, std::uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
               "r"(inside ? 16 : 0), "l"(policy)
               : "memory");
}
__device__ inline void end_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kLeft>
__device__ void wait_for_copies_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}
__device__ inline Pack<bf16, 8> shared_pack(std::uint32_t at) {
  Pack<bf16, 8> pack;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(pack.words[0]), "=r"(pack.words[1]), "=r"(pack.words[2]), "=r"(pack.words[3])
               : "r"(at)
               : "memory");
  return pack;
}
__device__ inline unsigned shared_word(std::uint32_t at) {
  unsigned word;
  asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(word) : "r"(at) : "memory");
  return word;
}
/// Not an addition: around one by a single lane ptxas gathers the warp's, and has it wait for the result at once.
__device__ inline unsigned draw_ticket(unsigned* from) {
  unsigned ticket;
  asm volatile("atom.global.inc.u32 %0, [%1], 0x7FFFFFFF;" : "=r"(ticket) : "l"(from) : "memory");
  return ticket;
}
__device__ inline unsigned larger_of_pairs(unsigned a, unsigned b) {
  unsigned larger;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}
__device__ inline float rounded_to_bf16(float x) {
  return __uint_as_float(pack_pair(0.0f, x));
}

/// Takes one of the lane's logits out of a part; those of pack i are 256 i to 256 i + 7.
__device__ inline void leave_out(Pack<bf16, 8> (&z)[8], int at) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if (at == i * 256 + 2 * w) z[i].words[w] = (z[i].words[w] & 0xFFFF0000u) | 0xFF80u;
      if (at == i * 256 + 2 * w + 1) z[i].words[w] = (z[i].words[w] & 0xFFFFu) | 0xFF800000u;
    }
  }
}

/// By a warp, all of whose lanes get the result.
__device__ inline Part sum_part(const Pack<bf16, 8> (&z)[8]) {
  unsigned top = z[0].words[0];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int w = 0; w < 4; ++w) top = larger_of_pairs(top, z[i].words[w]);
  }
  top = warp_reduce(top, [](unsigned a, unsigned b) { return larger_of_pairs(a, b); });
  const float largest = fmaxf(low_half(top), high_half(top));
  const float base = largest == -kInfinity ? 0.0f : -(largest * kLog2E);
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float x[8];
    widen(z[i], x);
#pragma unroll
    for (int e = 0; e < 8; ++e) sums[e % 4] += power_of_two(fmaf(x[e], kLog2E, base));
  }
  return {largest, warp_reduce((sums[0] + sums[1]) + (sums[2] + sums[3]), Add{})};
}

/// Waits until the part is there.
__device__ inline Part read_part(const uint2* from) {
  uint2 bits;
  const auto look = [&] {
    asm volatile("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];"
                 : "=r"(bits.x), "=r"(bits.y)
                 : "l"(from)
                 : "memory");
  };
  for (look(); bits.y == kMissing; look()) __nanosleep(kPause);
  return {__uint_as_float(bits.x), __uint_as_float(bits.y)};
}
__device__ inline void store_part(uint2* to, const Part& part) {
  const float sum = part.sum == part.sum ? part.sum : __uint_as_float(0x7FC00000u);
  asm volatile("st.relaxed.gpu.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(__float_as_uint(part.largest)),
               "r"(__float_as_uint(sum))
               : "memory");
}

/// Brings a warp the parts that it sums, one while it sums the one before.
struct PartReader {
  const Arguments& args;
  int lane;
  std::uint32_t stage,
      progress;  ///< shared addresses: of the part, and of how many tiles the block has begun
  int block_strips;
  std::uint64_t policy;
  unsigned next;  ///< lane 0's ticket, asked for one part ahead

  __device__ void draw() {
    if (lane == 0) next = draw_ticket(args.tickets + kPartTicket);
  }
  __device__ int take() {
    const int part = __shfl_sync(kAllLanes, next, 0);
    draw();
    return part;
  }
  __device__ int row_of(int part) const { return __umulhi(part, args.row_magic); }
  __device__ int column_of(int part, int row) const {
    return (part - row * args.row_parts) * kPartCols + lane * 8;
  }
  __device__ bool may_start(int row) const {
    const int begun = __shfl_sync(kAllLanes, shared_word(progress), 0);
    return (row / kGroupRows - kWindow) * block_strips <= begun;
  }
  /// Returns the row's target.
  __device__ int start(int part, int row) const {
    const int column = column_of(part, row);
    const bf16* from = args.logits.data + row * args.logits.stride + column;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      // Always, while columns are a multiple of kPartCols. The zeros of others would have to become -infinity before they are summed.
      const bool inside = column + i * 256 < args.cols;
      copy_16_bytes(stage + lane * 16 + i * 512, inside ? from + i * 256 : from, inside, policy);
    }
    end_copies();
    return args.targets[row];
  }
};

/// By a warp, with shared addresses as PartReader has them.
__device__ inline void sum_parts(const Arguments& args, int lane, std::uint32_t stage, std::uint32_t progress,
                                 int block_strips) {
  // Through a shuffle, or ptxas knows it to be uniform: that of CUDA 13.0 gives a copy with a policy an illegal descriptor where the
  // shared address is the sum of a register and a uniform one.
  stage = __shfl_sync(kAllLanes, stage, lane);
  PartReader reader{args, lane, stage, progress, block_strips, keep_longest(), 0};
  reader.draw();
  int part = reader.take(), target = 0;
  bool started = false;
  while (part < args.parts_in_all) {
    if (!started) {
      const int row = reader.row_of(part);
      while (!reader.may_start(row)) __nanosleep(kPause);
      target = reader.start(part, row);
    }
    wait_for_copies_but<0>();
    Pack<bf16, 8> z[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) z[i] = shared_pack(stage + lane * 16 + i * 512);
    const int own_target = target, following = reader.take(), row = reader.row_of(following);
    started = following < args.parts_in_all && reader.may_start(row);
    if (started) target = reader.start(following, row);
    // The target's own term is added where the row is joined: its gradient, and so amax, is another.
    const int at = own_target - reader.column_of(part, reader.row_of(part));
    if (static_cast<unsigned>(at) < kPartCols && (at & 255) < 8) leave_out(z, at);
    const Part sum = sum_part(z);
    if (lane == 0) store_part(args.parts + part, sum);
    part = following;
  }
}

/// All of a row but its target, by a warp, all of whose lanes get the result.
__device__ inline Part join_parts(const Arguments& args, int row, int lane) {
  Part joined{-kInfinity, 0};
  for (int p = lane; p < args.row_parts; p += 32) {
    const Part part = read_part(args.parts + static_cast<std::int64_t>(row) * args.row_parts + p);
    if (part.largest > joined.largest) {
      joined.sum *= power_of_two((joined.largest - part.largest) * kLog2E);
      joined.largest = part.largest;
    }
    joined.sum += joined.largest == -kInfinity
                      ? part.sum
                      : part.sum * power_of_two((part.largest - joined.largest) * kLog2E);
  }
  const float top = warp_reduce(joined.largest, Largest{});
  joined.sum *= top == -kInfinity ? 1.0f : power_of_two((joined.largest - top) * kLog2E);
  return {top, warp_reduce(joined.sum, Add{})};
}

/// The largest gradient of a row.
__device__ inline float row_amax(const Arguments& args, float largest, bool hot, float at_target,
                                 float offset) {
  const float amax = rounded_to_bf16(power_of_two(fmaf(largest, kLog2E, offset)));
  if (!hot) return amax;
  const float gradient = power_of_two(fmaf(at_target, kLog2E, offset)) - args.gradient_scale;
  return fmaxf(amax, fabsf(rounded_to_bf16(gradient)));
}

/// By one lane.
__device__ inline void count_row(const Arguments& args, int target, bool finite, float amax) {
  const auto cols = static_cast<unsigned long long>(args.cols);
  if (target < 0) {
    atomicAdd(args.counters + kCastZeros, cols);
    atomicAdd(args.counters + kCastUnderflowed, 0ull - cols);  // as which its tiles count them
  } else if (!finite) {
    atomicAdd(args.counters + kCastNan, cols);
  } else if (amax > *static_cast<volatile float*>(args.amax)) {
    atomicMax(reinterpret_cast<int*>(args.amax), __float_as_int(amax));
  }
}

/// By a warp: the row's loss, its offset, and what is counted of it as a whole.
__device__ __forceinline__ void join_row(const Arguments& args, int row, int lane, float log2_scale) {
  const int target = args.targets[row];
  const bool hot = target >= 0 && target < args.cols;
  const float at_target = hot ? as_float(args.logits.data[row * args.logits.stride + target]) : -kInfinity;
  const Part rest = join_parts(args, row, lane);
  if (lane != 0) return;
  const float base = fmaxf(rest.largest, at_target) * kLog2E;
  float sum = rest.sum * power_of_two(fmaf(rest.largest, kLog2E, -base));
  if (rest.largest == -kInfinity) sum = rest.sum;  // 0 or NaN
  if (hot) sum += power_of_two(fmaf(at_target, kLog2E, -base));
  const float logarithm = base + log2f(sum);
  const bool finite = fabsf(logarithm) < kInfinity;
  float offset = finite ? log2_scale - logarithm : __uint_as_float(0x7FC00000u);
  if (target < 0) offset = -kInfinity;
  asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(args.offsets + row), "f"(offset) : "memory");
  if (target != -1 && !hot) atomicMin(args.fault, row);
  args.losses[row] = hot ? 0.69314718f * (logarithm - at_target * kLog2E) : 0.0f;
  count_row(args, target, finite, row_amax(args, rest.largest, hot, at_target, offset));
}

__device__ inline void join_rows(const Arguments& args, int lane) {
  const float log2_scale = log2f(args.gradient_scale);
  unsigned next = 0;
  const auto draw = [&] {
    if (lane == 0) next = draw_ticket(args.tickets + kRowTicket);
  };
  draw();
  int row = __shfl_sync(kAllLanes, next, 0);
  while (row < args.rows) {
    draw();
    join_row(args, row, lane, log2_scale);
    row = __shfl_sync(kAllLanes, next, 0);
  }
}

}  // namespace quaver::cuda::once
