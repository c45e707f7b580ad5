/// The warps of the one-pass cross entropy that write the gradient, each a strip of columns from top to bottom.
#pragma once

#include "ops/cuda/cross_entropy_pass.cuh"

namespace quaver::cuda {

#ifdef __CUDACC__
/// Stores what nobody reads soon.
__device__ inline void store_passing(std::uint8_t* to, unsigned a, unsigned b) {
  asm volatile("st.global.cs.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(a), "r"(b) : "memory");
}
__device__ inline void store_passing(std::uint8_t* to, const Pack<bf16, 8>& run) {
  asm volatile("st.global.cs.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(run.words[0]), "r"(run.words[1]),
               "r"(run.words[2]), "r"(run.words[3])
               : "memory");
}
/// Loads here, and not where the number is needed: ptxas would wait for it at the end of an iteration.
__device__ inline int load_now(const std::int32_t* from) {
  int number;
  asm volatile("ld.global.s32 %0, [%1];" : "=r"(number) : "l"(from));
  return number;
}
/// Other words to the compiler, or it keeps the exponentials of all in registers until a rare case needs them once more.
__device__ inline void forget(unsigned& word) {
  asm volatile("" : "+r"(word));
}
#else
inline void store_passing(std::uint8_t* to, unsigned a, unsigned b) {
  const unsigned words[] = {a, b};
  std::memcpy(to, words, sizeof words);
}
inline void store_passing(std::uint8_t* to, const Pack<bf16, 8>& run) {
  std::memcpy(to, &run, sizeof run);
}
inline int load_now(const std::int32_t* from) {
  return *from;
}
inline void forget(unsigned&) {}
#endif

/// Of a warp's tiles; the second as CastTrace has it.
struct TileCounts {
  unsigned zeros = 0, zero_bytes_x128 = 0;
};

/// Numbers of a pack that are zeros before the cast.
__device__ inline unsigned count_zeros(Pack<bf16, kPack>& z, float offset) {
#pragma unroll
  for (int w = 0; w < kPack / 2; ++w) forget(z.words[w]);
  float x[kPack];
  widen(z, x);
  const float smallest =
      fminf(fminf(fminf(x[0], x[1]), fminf(x[2], x[3])), fminf(fminf(x[4], x[5]), fminf(x[6], x[7])));
  constexpr float kNeverZero = -120.0f;  // as an exponent
  if (offset == -kInfinity || fmaf(smallest, kLog2E, offset) >= kNeverZero) return 0;
  unsigned zeros = 0;
#pragma unroll
  for (int e = 0; e < kPack; ++e) zeros += rounded_to_bf16(scaled_probability(x[e], offset)) == 0 ? 1 : 0;
  return zeros;
}

/// 0x80 where a byte is 0; none has a sign.
__device__ inline unsigned zero_bytes_of(unsigned word) {
  return ~(word + 0x7F7F7F7Fu) & 0x80808080u;
}

/// Casts and stores a lane's pack; `scaled` is what it casts. Returns zero_bytes_x128 with its own added.
template <Fp8 kFormat>
__device__ unsigned write_row(std::uint8_t* to, const Pack<bf16, kPack>& z, float offset, float factor,
                              unsigned zero_bytes_x128, float (&scaled)[kPack]) {
  float x[kPack];
  widen(z, x);
#pragma unroll
  for (int e = 0; e < kPack; ++e) scaled[e] = rounded_to_bf16(scaled_probability(x[e], offset)) * factor;
  unsigned words[2];
  fp8_words(kFormat, scaled, words);
  store_passing(to, words[0], words[1]);
  return add_bytes(zero_bytes_of(words[1]), add_bytes(zero_bytes_of(words[0]), zero_bytes_x128));
}

/// A lane's rows: bytes go to memory, `columns` gets those of each column.
template <Fp8 kFormat>
__device__ void write_rows(const Matrix<std::uint8_t>& to, Pack<bf16, kPack> (&z)[kLaneRows],
                           const float (&offsets)[kLaneRows], float factor, TileCounts& counts,
                           unsigned (&columns)[kPack][2]) {
  std::uint8_t* row = to.data;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    unsigned zero_bytes_x128 = 0, low[kPack];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      float scaled[2][kPack];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int m = half * 4 + pair * 2 + r;
        zero_bytes_x128 = write_row<kFormat>(row, z[m], offsets[m], factor, zero_bytes_x128, scaled[r]);
        row += to.stride;
      }
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        const unsigned two = fp8_pair(kFormat, scaled[0][e], scaled[1][e]);
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
      for (int m = half * 4; m < half * 4 + 4; ++m) counts.zeros += count_zeros(z[m], offsets[m]);
    }
  }
}

/// Puts the gradient at a row's target where write_rows has put that of another logit. `runs`: the strip's transposed bytes.
template <Fp8 kFormat>
__device__ __forceinline__ void write_target(const LogitPass& pass, int row, int target,
                                             const RowGradient& gradient, SharedAddress runs, float factor,
                                             TileCounts& counts) {
  const float x = rounded_to_bf16(gradient.at_target);
  const std::uint8_t byte = fp8_byte(kFormat, x * factor);
  const SharedAddress transposed = runs + run_at(target % kStripCols) + row % kRunBytes;
  if (read_shared_byte(transposed) == 0) {
    const float other = rounded_to_bf16(scaled_probability(pass.logits(row, target), gradient.offset));
    counts.zeros -= other == 0 ? 1 : 0;
    counts.zero_bytes_x128 -= 128;
  }
  counts.zeros += x == 0 ? 1 : 0;
  counts.zero_bytes_x128 += (byte & 0x7F) == 0 ? 128 : 0;
  *pass.sink.bytes.address(row, target) = byte;
  store_shared(transposed, byte);
}

/// Brings the tiles of a strip to shared memory, one after the other; every lane its own packs, for which it waits itself.
struct TileReader {
  Matrix<bf16> left;  ///< from the lane's first pack of the next tile on
  int group, groups;
  std::uint64_t policy;

  __device__ void start(SharedAddress to) {
    if (group < groups) {
      const bf16* row = left.data;
#pragma unroll
      for (int m = 0; m < kLaneRows; ++m) {
        copy_16_bytes(to + m * kWarpBytes, row, true, policy);
        row += left.stride;
      }
      left.data += kGroupRows * left.stride;
    }
    ++group;
    end_copies();
  }
};

/// What a lane knows of the row of a group that is its own: the gradient if it is there yet.
struct OwnRow {
  RowGradient gradient;
  int target;

  __device__ void read(const LogitPass& pass, int row) {
    gradient = look_at(pass.of_rows.gradients + row);
    target = load_now(pass.of_rows.targets + row);
  }
  __device__ void wait(const LogitPass& pass, int row) {
    if (!is_missing(gradient.offset)) return;
    wait_until<0>([&] {
      gradient = look_at(pass.of_rows.gradients + row);
      return !is_missing(gradient.offset);
    });
  }
};

/// The offsets of a lane's rows, from `down` on: each is another lane's.
__device__ inline void share_offsets(float own, int down, float (&offsets)[kLaneRows]) {
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kLaneRows; ++m) offsets[m] = __shfl_sync(kAllLanes, own, down + m);
}
/// Rows without a target become zeros, whatever their logits are.
__device__ inline void clear_rows(Pack<bf16, kPack> (&z)[kLaneRows], const float (&offsets)[kLaneRows]) {
#pragma unroll
  for (int m = 0; m < kLaneRows; ++m) {
#pragma unroll
    for (int w = 0; w < kPack / 2; ++w) {
      if (offsets[m] == -kInfinity) z[m].words[w] = 0;
    }
  }
}

/// What write_rows gave, to shared memory.
__device__ inline void stage_columns(SharedAddress to, const unsigned (&columns)[kPack][2]) {
#pragma unroll
  for (int e = 0; e < kPack; ++e) store_shared(to + e * kRunBytes, columns[e][0], columns[e][1]);
}
/// Stores the transposed bytes of kRunGroups groups.
__device__ inline void store_runs(const Matrix<std::uint8_t>& to, SharedAddress runs, int lane) {
  std::uint8_t* column = to.data;
#pragma unroll 4
  for (int n = 0; n < kStripCols; n += 4) {
    store_passing(column, shared_pack(runs + run_at(n + lane / 8) + lane % 8 * 16));
    column += 4 * to.stride;
  }
}

__device__ inline void count_tiles(unsigned long long* counters, const TileCounts& counts, int lane) {
  const unsigned zeros = warp_sum(counts.zeros), zero_bytes = warp_sum(counts.zero_bytes_x128) / 128;
  if (lane != 0) return;
  if (zeros) atomicAdd(counters + kCastZeros, static_cast<unsigned long long>(zeros));
  if (zeros != zero_bytes)
    atomicAdd(counters + kCastUnderflowed, static_cast<unsigned long long>(zero_bytes) - zeros);
}

/// By a warp, whose lanes have 8 columns of 8 rows of a tile. `progress` counts the tiles that the block has begun.
template <Fp8 kFormat>
__device__ void write_strip(const LogitPass& pass, int lane, SharedAddress runs, SharedAddress stages,
                            SharedAddress progress, int strip) {
  const int down = lane / 8 * kLaneRows, across = lane % 8 * kPack, first = strip * kStripCols + across;
  const float factor = *pass.sink.scale;
  TileCounts counts;
  const SharedAddress begin = opaque(stages + lane * kPackBytes, lane),
                      end = begin + kTilesAhead * kStageBytes;
  TileReader reader{
      {pass.logits.address(down, first), pass.logits.stride}, 0, pass.groups, cache_policy(Keep::no_longer)};
#pragma unroll
  for (int i = 0; i < kTilesAhead; ++i) reader.start(begin + i * kStageBytes);
  SharedAddress own = begin;
  OwnRow next;
  next.read(pass, lane);
  Matrix<std::uint8_t> bytes{pass.sink.bytes.address(down, first), pass.sink.bytes.stride},
      transposed{pass.sink.transposed.address(strip * kStripCols + lane / 8, lane % 8 * 16),
                 pass.sink.transposed.stride};
  for (int g = 0; g < pass.groups; ++g) {
    wait_for_copies_but<kTilesAhead - 1>();
    if (lane == 0) increment_shared(progress);
    const int own_row = g * kGroupRows + lane;
    OwnRow row = next;
    const int hot = row.target - strip * kStripCols;
    if (g + 1 < pass.groups) next.read(pass, own_row + kGroupRows);
    Pack<bf16, kPack> z[kLaneRows];
#pragma unroll
    for (int m = 0; m < kLaneRows; ++m) z[m] = shared_pack(own + m * kWarpBytes);
    reader.start(own);
    own += kStageBytes;
    if (own == end) own = begin;
    float offsets[kLaneRows];
    row.wait(pass, own_row);
    share_offsets(row.gradient.offset, down, offsets);
    if (__ballot_sync(kAllLanes, row.target < 0)) clear_rows(z, offsets);
    unsigned columns[kPack][2];
    write_rows<kFormat>(bytes, z, offsets, factor, counts, columns);
    bytes.data += kGroupRows * bytes.stride;
    stage_columns(runs + run_at(across) + g % kRunGroups * kGroupRows + down, columns);
    __syncwarp();
    if (static_cast<unsigned>(hot) < kStripCols)
      write_target<kFormat>(pass, own_row, row.target, row.gradient, runs, factor, counts);
    if (g % kRunGroups == kRunGroups - 1) {
      __syncwarp();
      store_runs(transposed, runs, lane);
      transposed.data += kRunBytes;
      __syncwarp();
    }
  }
  count_tiles(pass.sink.counters, counts, lane);
}

}  // namespace quaver::cuda
