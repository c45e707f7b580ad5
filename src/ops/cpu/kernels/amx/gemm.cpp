/// GEMMs of BF16 and FP8 operands by the matrix unit.
#include "ops/cpu/kernels/gemm.h"

#include "ops/cpu/kernels/microkernel.h"
#include "ops/cpu/kernels/pack.h"
#include "ops/cpu/kernels/pack_fp8_tiles.h"
#include "ops/cpu/kernels/store_output.h"
#include "ops/cpu/kernels/unit_gemm.h"

namespace quaver::cpu::amx {
namespace {

/// Steps multiplied before the next panel's turn, at most: a panel of rows takes less than half of the innermost cache, while columns come from
/// the next one, in order. With more steps both come from there, which takes longer than the products.
constexpr std::int64_t kBlockSteps = 160;

constexpr std::int64_t block_steps(std::int64_t steps) {
  const std::int64_t blocks = steps <= kBlockSteps ? 1 : (steps + kBlockSteps - 1) / kBlockSteps;
  return round_up((steps + blocks - 1) / blocks, kTileSteps);
}

std::int64_t units_of(const Operand& source) {
  return steps_of(source.element, source.contraction);
}

/// Steps of the contraction, of units.
struct Steps {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
};

void pack_tile_rows(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  if (source.element == Element::bf16) return pack_rows(source, begin, end, packed);
  const std::int64_t stride = packed_row_stride(source);
  pack_fp8_rows(source, begin, end, packed, stride);
  const std::int64_t count = end - begin;
  for (std::int64_t i = count * stride; i < round_up(count, kRows) * stride; ++i) packed[i] = 0;
}

void pack_tile_columns(const Operand& source, std::int64_t begin, std::int64_t end, float* packed) {
  source.element == Element::bf16 ? pack_columns(source, begin, end, packed)
                                  : pack_fp8_columns(source, begin, end, packed);
}

/// A panel of sums of the output.
struct Panel {
  std::int64_t row, column;
  std::int64_t rows, columns;  ///< valid ones
  int vectors;
};

/// Rows of two vectors of sums, side by side, to rows `stride` apart.
template <int Rows>
[[gnu::always_inline]] inline void store_bf16_lines(const float* sums, Vector scale, std::uint16_t* to,
                                                    std::int64_t stride) {
  typedef Halves Unaligned __attribute__((aligned(2)));
  Vector x[2 * Rows];
#pragma GCC unroll 4
  for (int v = 0; v < 2 * Rows; ++v) x[v] = *reinterpret_cast<const Vector*>(sums + v * kVector) * scale;
  if (__builtin_expect(!has_nan_or_denormal(x), 1)) {
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
      _mm512_storeu_si512(to + r * stride,
                          reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(x[2 * r + 1], x[2 * r])));
    }
    return;
  }
  for (int v = 0; v < 2 * Rows; ++v)
    *reinterpret_cast<Unaligned*>(to + v / 2 * stride + v % 2 * kVector) = round_to_bf16(x[v]);
}

/// Finished sums on their way to the output: a panel's are written when the products of the next are under way, so that they are
/// there before they are read.
class OutputQueue {
 public:
  explicit OutputQueue(const GemmOutput& out)
      : out_(out), plain_(out.is_bf16 && !out.accumulate && !out.bias) {}
  ~OutputQueue() { write(); }
  OutputQueue(const OutputQueue&) = delete;
  OutputQueue& operator=(const OutputQueue&) = delete;

  float* free_sums() { return sums_[1 - current_]; }
  /// The panel whose sums were written to free_sums().
  void push(const Panel& panel) {
    write();
    current_ = 1 - current_;
    panel_ = panel;
  }

 private:
  static constexpr std::int64_t kStoredRows = 4;

  void write() const {
    if (plain_ && panel_.columns == kPanelColumns) return write_plain();
    panel_.vectors == 2 ? write_any<2>() : write_any<1>();
  }
  /// What most products ask for, a line of the output at a time.
  void write_plain() const {
    const Vector scale = broadcast(out_.scale);
    const std::int64_t stride = out_.stride;
    const float* from = sums_[current_];
    auto* to = static_cast<std::uint16_t*>(out_.data) + panel_.row * stride + panel_.column;
    std::int64_t left = panel_.rows;
    for (; left >= 2; left -= 2, from += 2 * kPanelColumns, to += 2 * stride)
      store_bf16_lines<2>(from, scale, to, stride);
    if (left > 0) store_bf16_lines<1>(from, scale, to, stride);
  }
  template <int Vectors>
  void write_any() const {
    for (std::int64_t row = 0; row < panel_.rows; row += kStoredRows) {
      Vector part[kStoredRows][Vectors];
      const float* from = sums_[current_] + row * kPanelColumns;
#pragma GCC unroll 4
      for (int r = 0; r < kStoredRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v)
          part[r][v] = *reinterpret_cast<const Vector*>(from + r * kPanelColumns + v * kVector);
      }
      StoreOutput{out_, panel_.row + row, panel_.column, panel_.rows - row, panel_.columns}.finish(part);
    }
  }

  alignas(64) float sums_[2][kRows * kPanelColumns];
  const GemmOutput& out_;
  bool plain_;
  Panel panel_{};  ///< without rows: nothing is under way
  int current_ = 0;
};

/// Its rows lie apart in memory, so that stores that find them in no cache would wait for each: they are asked for before the panel is
/// multiplied.
void fetch_output(const GemmOutput& out, const Panel& panel) {
  const std::int64_t size = out.is_bf16 ? 2 : 4;
  const auto* row = static_cast<const char*>(out.data) + (panel.row * out.stride + panel.column) * size;
  const std::int64_t stride = out.stride * size, last = panel.columns * size - 1;
#pragma GCC unroll 4
  for (std::int64_t r = 0; r < panel.rows; ++r, row += stride) {
    __builtin_prefetch(row, 1, 2);
    if (last >= 64) __builtin_prefetch(row + last, 1, 2);
  }
}

/// Multiplies panels of one tile of the output.
class PanelProducts {
 public:
  PanelProducts(const GemmOutput& out, std::int64_t steps) : out_(out), queue_(out), steps_(steps) {}

  /// Some of the steps of a panel: both operands from the first of them on. Until the last, sums are in `kept`.
  void multiply(const Panel& panel, const Steps& part, TileMatrix a, const float* b, float* kept) {
    const std::int64_t width = panel.vectors * kVector;
    const TileMatrix carried{part.begin > 0 ? kept : nullptr, width};
    if (part.end < steps_) {
      return multiply_tiles(panel.rows, panel.vectors, a, b, part.size(), carried, kept, width);
    }
    fetch_output(out_, panel);
    multiply_tiles(panel.rows, panel.vectors, a, b, part.size(), carried, queue_.free_sums(), kPanelColumns);
    queue_.push(panel);
  }

 private:
  const GemmOutput& out_;
  OutputQueue queue_;
  std::int64_t steps_;
};

/// Calls body(steps) for every block of a contraction, at least once.
template <class Body>
void for_blocks(std::int64_t steps, const Body& body) {
  const std::int64_t block = block_steps(steps);
  std::int64_t begin = 0;
  do {
    const std::int64_t end = lower(steps, begin + block);
    body(Steps{begin, end});
    begin = end;
  } while (begin < steps);
}

/// Calls body(panel) for the panels of columns of kRows rows.
template <class Body>
void for_panels(std::int64_t row_count, std::int64_t row, std::int64_t columns, const Body& body) {
  const std::int64_t rows = lower(kRows, row_count - row);
  for_column_panels(columns, [&](std::int64_t column, int vectors) {
    body(Panel{row, column, rows, lower(vectors * kVector, columns - column), vectors});
  });
}

/// Sums of a panel, where panels of `rows` rows, in whole panels, stand column by column.
std::int64_t place_of(const Panel& panel, std::int64_t rows) {
  return panel.column * round_up(rows, kRows) + panel.row * panel.vectors * kVector;
}

/// Some packed lanes of one side of a tile: from lane `first` on.
struct PackedLanes {
  const float* packed;
  std::int64_t first, count;
};

/// Multiplies all of the rows with all of the columns; `sums` is scratch for whole panels of both.
void multiply_lanes(PanelProducts& products, const Operand& source, const PackedLanes& rows,
                    const PackedLanes& columns, float* sums) {
  const std::int64_t steps = units_of(source), stride = packed_row_stride(source);
  for_blocks(steps, [&](const Steps& part) {
    for (std::int64_t row = 0; row < rows.count; row += kRows) {
      for_panels(rows.count, row, columns.count, [&](Panel panel) {
        const float* const b = columns.packed + panel.column * steps + part.begin * panel.vectors * kVector;
        float* const kept = sums + place_of(panel, rows.count);
        panel.row += rows.first;
        panel.column += columns.first;
        products.multiply(panel, part, {rows.packed + row * stride + part.begin, stride}, b, kept);
      });
    }
  });
}

/// Calls body(lanes) for every `in_turn` lanes of a side, packed into the innermost cache if their contraction is short; or once for
/// all, if they are packed.
template <class Body>
void for_lanes(const UnitLanes& side, void (*pack)(const Operand&, std::int64_t, std::int64_t, float*),
               const Body& body) {
  if (side.in_turn == 0) return body(PackedLanes{side.packed, 0, side.source.lanes});
  for (std::int64_t first = 0; first < side.source.lanes; first += side.in_turn) {
    const std::int64_t count = lower(side.in_turn, side.source.lanes - first);
    pack(side.source, first, first + count, side.packed);
    body(PackedLanes{side.packed, first, count});
  }
}

void multiply_tile(const UnitTile& tile) {
  const TileScope tiles;
  PanelProducts products(tile.out, units_of(tile.rows.source));
  for_lanes(tile.rows, pack_tile_rows, [&](const PackedLanes& rows) {
    for_lanes(tile.columns, pack_tile_columns, [&](const PackedLanes& columns) {
      multiply_lanes(products, tile.rows.source, rows, columns, tile.sums);
    });
  });
}

}  // namespace

const UnitGemmKernels gemm_kernels = {
    .panel = kRows,
    .steps = steps_of,
    .row_stride = packed_row_stride,
    .pack_rows = pack_tile_rows,
    .pack_columns = pack_tile_columns,
    .carried_from = kBlockSteps,
    .multiply = multiply_tile,
};

}  // namespace quaver::cpu::amx
