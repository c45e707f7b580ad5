#include <gtest/gtest.h>

#include <vector>

#include "ops/cuda/async_copy.cuh"
#include "ops/cuda/launch.h"
#include "support/errors.h"

namespace quaver::cuda {
namespace {

/// Sums 64 numbers per block: shuffles within the warps, shared memory and a barrier between them.
__global__ void sum_block(const float* numbers, float* sums) {
  __shared__ float of_warp[2];
  const unsigned thread = threadIdx.x;
  float sum = numbers[blockIdx.x * blockDim.x + thread];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (thread % 32 == 0) of_warp[thread / 32] = sum;
  __syncthreads();
  if (thread == 0) sums[blockIdx.x] = of_warp[0] + of_warp[1];
}

TEST(LaunchEmulation, SumsThroughShufflesAndBarriers) {
  std::vector<float> numbers(192), sums(3);
  for (int i = 0; i < 192; ++i) numbers[i] = static_cast<float>(i);
  launch("sum_block", sum_block, {3, 64}, nullptr, numbers.data(), sums.data());
  EXPECT_EQ(sums, (std::vector<float>{2016, 6112, 10208}));
}

/// Every thread writes its place; the last of each row of threads leaves before the barrier.
__global__ void places(int* counts, int* order) {
  auto* shared = static_cast<int*>(dynamic_shared_memory());
  const unsigned place = threadIdx.x + blockDim.x * threadIdx.y;
  atomicAdd(counts + place, 1);
  shared[place] = static_cast<int>(place);
  if (threadIdx.x == blockDim.x - 1) return;
  __syncthreads();
  if (blockIdx.x == 1 && blockIdx.y == 2) order[place] = shared[place + 1];
}

TEST(LaunchEmulation, GridsBlocksAndEarlyReturns) {
  std::vector<int> counts(15), order(15, -1);
  launch("places", places, {dim3(2, 3), dim3(5, 3), 15 * sizeof(int)}, nullptr, counts.data(), order.data());
  EXPECT_EQ(counts, std::vector<int>(15, 6));
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3, 4, -1, 6, 7, 8, 9, -1, 11, 12, 13, 14, -1}));
}

__global__ void half_a_warp_shuffles(int* out) {
  __syncthreads();
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 0);
  __syncthreads();
}

TEST(LaunchEmulation, ThreadsThatWaitForEachOtherAreAnError) {
  std::vector<int> out(32);
  const std::string message = error_message(ErrorKind::failure, [&] {
    launch("half_a_warp_shuffles", half_a_warp_shuffles, {1, 32}, nullptr, out.data());
  });
  EXPECT_TRUE(contains(message, "half_a_warp_shuffles")) << message;
}

__global__ void unwritten(float* out) {
  out[threadIdx.x] = static_cast<const float*>(dynamic_shared_memory())[threadIdx.x];
}

TEST(LaunchEmulation, SharedMemoryStartsAsNan) {
  std::vector<float> out(4);
  launch("unwritten", unwritten, {1, 4, 16}, nullptr, out.data());
  for (const float value : out) EXPECT_TRUE(std::isnan(value));
}

/// What is seen of three copies after their start, once two may be left, and once none may.
__global__ void copy_by_groups(const unsigned char* from, unsigned char* seen) {
  auto* const to = static_cast<unsigned char*>(dynamic_shared_memory());
  for (int i = 0; i < 3; ++i) {
    copy_16_bytes(shared_address(to + 16 * i), from, true, cache_policy(Keep::longest));
    end_copies();
  }
  const auto look = [&] {
    for (int i = 0; i < 3; ++i) *seen++ = to[16 * i];
  };
  look();
  wait_for_copies_but<2>();
  look();
  wait_for_copies_but<0>();
  look();
}

TEST(LaunchEmulation, CopiesComeWhenTheirGroupIsWaitedFor) {
  const std::vector<unsigned char> from(16, 7);
  std::vector<unsigned char> seen(9);
  launch("copy_by_groups", copy_by_groups, {1, 1, 48}, nullptr, from.data(), seen.data());
  constexpr unsigned char kNot = 0xFF;
  EXPECT_EQ(seen, (std::vector<unsigned char>{kNot, kNot, kNot, 7, kNot, kNot, 7, 7, 7}));
}

}  // namespace
}  // namespace quaver::cuda
