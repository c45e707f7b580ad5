#include <algorithm>

#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/kernels/gemm.h"

namespace quaver {
namespace {

using cpu::Element;
using cpu::GemmKernels;
using cpu::GemmOutput;
using cpu::GemmTile;
using cpu::Operand;

Element element_of(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return Element::bf16;
    case DType::e4m3:
      return Element::e4m3;
    case DType::e5m2:
      return Element::e5m2;
    default:
      return Element::f32;
  }
}

/// The rows of `matrix` as lanes, or (`across`) its columns.
Operand operand_of(const Tensor& matrix, bool across) {
  return {.data = matrix.raw(),
          .stride = matrix.row_stride(),
          .lanes = across ? matrix.cols() : matrix.rows(),
          .contraction = across ? matrix.rows() : matrix.cols(),
          .element = element_of(matrix.dtype()),
          .along_contraction = !across};
}

float scale_of(const GemmOperand& a, const GemmOperand& b) {
  return is_fp8(a.dtype()) ? *a.scale_inv.data<float>() * *b.scale_inv.data<float>() : 1.0f;
}

/// How the output is cut. Tiles are the items that threads share; stripes bound the packed copies, so that
/// these stay in the outer cache. All of it depends on the shape alone.
struct Cut {
  std::int64_t tile_rows = 64, tile_columns = 192;
  std::int64_t stripe_rows, stripe_columns;
};

constexpr std::int64_t kStripeBytes = 4 << 20;
constexpr std::int64_t kWantedTiles = 32;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

Cut cut_of(std::int64_t rows, std::int64_t columns, std::int64_t steps) {
  Cut cut;
  const auto too_few = [&] {
    return ceil_div(rows, cut.tile_rows) * ceil_div(columns, cut.tile_columns) < kWantedTiles;
  };
  if (too_few()) cut.tile_columns = 96;
  if (too_few() && rows > 32) cut.tile_rows = 32;
  const std::int64_t stripe = kStripeBytes / std::max<std::int64_t>(1, steps * 4);
  cut.stripe_rows = std::max(cut.tile_rows, stripe / cut.tile_rows * cut.tile_rows);
  cut.stripe_columns = std::max(cut.tile_columns, stripe / cut.tile_columns * cut.tile_columns);
  return cut;
}

struct Range {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
};

Range block_of(const Range& range, std::int64_t index, std::int64_t block) {
  const std::int64_t begin = range.begin + index * block;
  return {begin, std::min(range.end, begin + block)};
}

/// One product; the packed copies are scratch from the backend's arena.
class Product {
 public:
  Product(Backend& backend, const Threads& threads, const GemmKernels& kernels, const Operand& a,
          const Operand& b, const GemmOutput& out)
      : threads_(threads), kernels_(kernels), a_(a), b_(b), out_(out) {
    steps_ = kernels.steps(a.element, a.contraction);
    row_stride_ = kernels.packed_row_stride(a);
    row_units_ = row_stride_ == 0 ? steps_ : row_stride_;
    cut_ = cut_of(a.lanes, b.lanes, steps_);
    packs_on_use_ = a.lanes <= cut_.tile_rows;
    const auto padded = [](std::int64_t size, std::int64_t stripe, std::int64_t tile) {
      return ceil_div(std::min(size, stripe), tile) * tile;
    };
    packed_a_ = scratch(backend, padded(a.lanes, cut_.stripe_rows, cut_.tile_rows) * row_units_);
    packed_b_ =
        scratch(backend, packs_on_use_ ? threads.count() * cut_.tile_columns * steps_
                                       : padded(b.lanes, cut_.stripe_columns, cut_.tile_columns) * steps_);
    sums_ = scratch(backend, threads.count() * cut_.tile_rows * cut_.tile_columns);
  }

  void run() const {
    if (packs_on_use_) return run_few_rows();
    for (std::int64_t column = 0; column < b_.lanes; column += cut_.stripe_columns) {
      const Range columns{column, std::min(b_.lanes, column + cut_.stripe_columns)};
      for (std::int64_t row = 0; row < a_.lanes; row += cut_.stripe_rows) {
        const Range rows{row, std::min(a_.lanes, row + cut_.stripe_rows)};
        pack(rows, columns, row == 0);
        multiply(rows, columns);
      }
    }
  }

 private:
  static Tensor scratch(Backend& backend, std::int64_t floats) {
    return backend.allocate(DType::f32, {std::max<std::int64_t>(16, floats)});
  }

  /// A stripe of either operand; that of `b` serves all stripes of `a`.
  void pack(const Range& rows, const Range& columns, bool with_columns) const {
    const std::int64_t row_tiles = ceil_div(rows.size(), cut_.tile_rows);
    const std::int64_t column_tiles = with_columns ? ceil_div(columns.size(), cut_.tile_columns) : 0;
    threads_.for_each(row_tiles + column_tiles, [&](std::int64_t item) {
      if (item < column_tiles) {
        pack_columns(block_of(columns, item, cut_.tile_columns),
                     packed_b_.data<float>() + item * cut_.tile_columns * steps_);
      } else {
        pack_rows(rows, item - column_tiles);
      }
    });
  }

  void pack_rows(const Range& rows, std::int64_t tile) const {
    const Range lanes = block_of(rows, tile, cut_.tile_rows);
    kernels_.pack_rows(a_, lanes.begin, lanes.end, packed_rows(tile));
  }
  void pack_columns(const Range& lanes, float* packed) const {
    kernels_.pack_columns(b_, lanes.begin, lanes.end, packed);
  }
  float* packed_rows(std::int64_t tile) const {
    return packed_a_.data<float>() + tile * cut_.tile_rows * row_units_;
  }

  void multiply(const Range& rows, const Range& columns) const {
    const std::int64_t row_tiles = ceil_div(rows.size(), cut_.tile_rows);
    const std::int64_t column_tiles = ceil_div(columns.size(), cut_.tile_columns);
    // Neighbouring items share the packed columns, the larger of the two.
    threads_.for_each_on_thread(row_tiles * column_tiles, [&](std::int64_t item, int thread) {
      const std::int64_t row_tile = item % row_tiles, column_tile = item / row_tiles;
      multiply_tile(block_of(rows, row_tile, cut_.tile_rows),
                    block_of(columns, column_tile, cut_.tile_columns), packed_rows(row_tile),
                    packed_b_.data<float>() + column_tile * cut_.tile_columns * steps_, thread);
    });
  }

  /// One row of tiles: packed columns serve once, so they are packed right before use and stay in the inner
  /// cache.
  void run_few_rows() const {
    const Range rows{0, a_.lanes}, columns{0, b_.lanes};
    pack_rows(rows, 0);
    threads_.for_each_on_thread(
        ceil_div(columns.size(), cut_.tile_columns), [&](std::int64_t item, int thread) {
          float* packed = packed_b_.data<float>() + thread * cut_.tile_columns * steps_;
          const Range lanes = block_of(columns, item, cut_.tile_columns);
          pack_columns(lanes, packed);
          multiply_tile(rows, lanes, packed_rows(0), packed, thread);
        });
  }

  void multiply_tile(const Range& rows, const Range& columns, const float* a, const float* b,
                     int thread) const {
    GemmTile tile{.element = a_.element,
                  .a = a,
                  .a_stride = row_stride_,
                  .b = b,
                  .rows = rows.size(),
                  .columns = columns.size(),
                  .contraction = a_.contraction,
                  .sums = sums_.data<float>() + thread * cut_.tile_rows * cut_.tile_columns,
                  .out = out_};
    const std::int64_t offset = rows.begin * out_.stride + columns.begin;
    tile.out.data = static_cast<std::byte*>(out_.data) + offset * (out_.is_bf16 ? 2 : 4);
    if (out_.bias) tile.out.bias = out_.bias + columns.begin;
    kernels_.multiply(tile);
  }

  const Threads& threads_;
  const GemmKernels& kernels_;
  Operand a_, b_;
  GemmOutput out_;
  std::int64_t steps_ = 0, row_stride_ = 0, row_units_ = 0;
  Cut cut_;
  bool packs_on_use_ = false;
  Tensor packed_a_, packed_b_, sums_;
};

}  // namespace

void CpuBackend::gemm(Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& bias,
                      bool accumulate, const Tensor& out) {
  check_gemm(kind, a, b, bias, out);
  if (out.elements() == 0) return;
  const GemmOutput output{.data = out.raw(),
                          .stride = out.row_stride(),
                          .is_bf16 = out.dtype() == DType::bf16,
                          .accumulate = accumulate,
                          .scale = scale_of(a, b),
                          .bias = bias ? bias.data<float>() : nullptr};
  Product(*this, threads_, *kernels_.gemm, operand_of(a.values, kind == Gemm::wgrad),
          operand_of(b.values, kind != Gemm::fprop), output)
      .run();
}

}  // namespace quaver
