/// The warps of the one-pass cross entropy that sum parts of rows, and those that join them.
#pragma once

#include "ops/cuda/cross_entropy_pass.cuh"

namespace quaver::cuda {

/// Brings a warp the parts that it sums, one while it sums the one before. Tickets are in the order of rows.
struct PartReader {
  const LogitPass& pass;
  int lane;
  SharedAddress stage;     ///< of the part
  SharedAddress progress;  ///< of the number of tiles that the block has begun
  int block_strips;
  std::uint64_t policy;

  __device__ bool is_part(int part) const { return part < pass.rows * pass.row_parts; }
  __device__ int row_of(int part) const {
    return static_cast<int>(static_cast<std::uint64_t>(part) * pass.row_magic >> 31);
  }
  /// The lane's first.
  __device__ int column_of(int part, int row) const {
    return (part - row * pass.row_parts) * kPartCols + lane * kPack;
  }
  __device__ bool near_tiles(int row, unsigned tiles_begun) const {
    return (row / kGroupRows - kGroupsAhead) * block_strips <= static_cast<int>(tiles_begun);
  }
  /// The same in all lanes.
  __device__ bool may_start(int row) const {
    return near_tiles(row, __shfl_sync(kAllLanes, read_shared(progress), 0));
  }
  __device__ void wait_until_near(int row) const {
    wait_until<kPause>([&] { return near_tiles(row, read_shared(progress)); });
  }
  /// Returns the row's target.
  __device__ int start(int part, int row) const {
    const int column = column_of(part, row);
    const bf16* const from = pass.logits.address(row, column);
#pragma unroll
    for (int i = 0; i < kPartPacks; ++i) {
      const bool inside = column + i * kPackStride < pass.cols;
      copy_16_bytes(stage + lane * kPackBytes + i * kWarpBytes,
                    inside ? from + i * kPackStride : pass.logits.data, inside, policy);
    }
    end_copies();
    return pass.of_rows.targets[row];
  }
};

/// `progress`: as of PartReader.
__device__ inline void sum_parts(const LogitPass& pass, int lane, SharedAddress stage, SharedAddress progress,
                                 int block_strips) {
  PartReader reader{pass, lane, opaque(stage, lane), progress, block_strips, cache_policy(Keep::longest)};
  Tickets tickets{pass.tickets + kPartTicket, lane};
  tickets.draw();
  int part = tickets.take(), target = 0;
  bool started = false;
  while (reader.is_part(part)) {
    if (!started) {
      const int row = reader.row_of(part);
      reader.wait_until_near(row);
      target = reader.start(part, row);
    }
    wait_for_copies_but<0>();
    PartPacks<bf16> z;
#pragma unroll
    for (int i = 0; i < kPartPacks; ++i)
      z[i] = shared_pack(reader.stage + lane * kPackBytes + i * kWarpBytes);
    const int column = reader.column_of(part, reader.row_of(part)), own_target = target,
              following = tickets.take(), row = reader.row_of(following);
    started = reader.is_part(following) && reader.may_start(row);
    if (started) target = reader.start(following, row);
    if (column - lane * kPack + kPartCols > pass.cols)
      leave_out<bf16>(z, [&](int place) { return column + place >= pass.cols; });
    const int at = own_target - column;
    if (static_cast<unsigned>(at) < kPartCols && at % kPackStride < kPack)
      leave_out<bf16>(z, [&](int place) { return place == at; });
    const Part sum = sum_part<bf16>(z);
    if (lane == 0) show(pass.parts + part, {sum.largest, as_present(sum.sum)});
    part = following;
  }
}

/// All of a row but its target, by a warp; every lane gets the result. Waits for the row's parts.
__device__ inline Part join_parts(const LogitPass& pass, int row, int lane) {
  Part joined;
  for (int p = lane; p < pass.row_parts; p += 32) {
    const Part* const from = pass.parts + static_cast<std::int64_t>(row) * pass.row_parts + p;
    Part part;
    wait_until<kPause>([&] {
      part = look_at(from);
      return !is_missing(part.sum);
    });
    joined = join(joined, part);
  }
  return join_lanes(joined);
}

/// Of the gradients of a row, by a warp: reads it once more, which nothing but a scale that is too large calls for.
template <Fp8 kFormat>
__device__ void count_saturated(const LogitPass& pass, int row, int target, const RowGradient& gradient,
                                float factor, int lane) {
  unsigned saturated = 0;
  for (int n = lane * kPack; n < pass.cols; n += kPackStride) {
    float z[kPack];
    pass.logits.load(row, n, z);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float exact = n + i == target ? gradient.at_target : scaled_probability(z[i], gradient.offset);
      if (fabsf(rounded_to_bf16(exact)) * factor > largest_fp8(kFormat)) ++saturated;
    }
  }
  saturated = warp_sum(saturated);
  if (lane == 0) atomicAdd(pass.sink.counters + kCastSaturated, static_cast<unsigned long long>(saturated));
}

/// By one lane: what is counted of a row as a whole.
__device__ inline void count_row(const LogitPass& pass, bool has_target, bool finite, float amax) {
  const auto cols = static_cast<unsigned long long>(pass.cols);
  const Sink<bf16>& sink = pass.sink;
  if (!has_target) {
    atomicAdd(sink.counters + kCastZeros, cols);
    atomicAdd(sink.counters + kCastUnderflowed, 0ull - cols);  // as which its tiles count them
  } else if (!finite) {
    atomicAdd(sink.counters + kCastNan, cols);
  } else if (amax > *static_cast<volatile float*>(sink.amax)) {
    atomicMax(reinterpret_cast<int*>(sink.amax), __float_as_int(amax));
  }
}

/// By a warp.
template <Fp8 kFormat>
__device__ __forceinline__ void join_row(const LogitPass& pass, int row, float factor, int lane) {
  const TargetRows& of_rows = pass.of_rows;
  const int target = of_rows.targets[row];
  const bool has_target = target >= 0 && target < pass.cols;
  const float at_target = has_target ? pass.logits(row, target) : -kInfinity;
  const Part others = join_parts(pass, row, lane);
  const JoinedRow joined = join_target(others, at_target, has_target, pass.scale);
  const RowGradient& gradient = joined.gradient;
  const bool finite = gradient.offset == gradient.offset;
  // The exponential grows with its operand: of the others the largest logit has the largest gradient.
  const float largest = scaled_probability(others.largest, gradient.offset),
              amax = rounded_to_bf16(fmaxf(largest, fabsf(gradient.at_target)));
  if (lane == 0) {
    show(of_rows.gradients + row, gradient);
    of_rows.losses[row] = joined.loss;
    if (target != -1) check_index(target, pass.cols, row, kTargetClass, of_rows.faults);
    count_row(pass, has_target, finite, amax);
  }
  if (finite && amax * factor > largest_fp8(kFormat))
    count_saturated<kFormat>(pass, row, target, gradient, factor, lane);
}

template <Fp8 kFormat>
__device__ void join_rows(const LogitPass& pass, int lane) {
  const float factor = *pass.sink.scale;
  Tickets tickets{pass.tickets + kRowTicket, lane};
  tickets.draw();
  for (int row = tickets.take(); row < pass.rows; row = tickets.take())
    join_row<kFormat>(pass, row, factor, lane);
}

}  // namespace quaver::cuda
