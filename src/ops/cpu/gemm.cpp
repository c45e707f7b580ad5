#include <fmt/format.h>

#include <algorithm>

#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/kernels/gemm.h"
#include "ops/cpu/ranges.h"
#include "ops/cpu/unit_product.h"
#include "ops/host_operands.h"

namespace quaver::cpu {

GemmOutput GemmOutput::from(std::int64_t row, std::int64_t column) const {
  GemmOutput part = *this;
  part.data = static_cast<std::byte*>(data) + (row * stride + column) * (is_bf16 ? 2 : 4);
  if (bias) part.bias = bias + column;
  return part;
}

}  // namespace quaver::cpu

namespace quaver {
namespace {

using cpu::block_of;
using cpu::ceil_div;
using cpu::Element;
using cpu::GemmKernels;
using cpu::GemmOutput;
using cpu::GemmTile;
using cpu::Operand;
using cpu::Range;

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

/// How the output is cut, by its shape alone. A tile of rows is what a thread packs and multiplies by itself; it
/// stays in the inner caches. A group of columns is packed as a whole. A stripe of groups bounds the packed
/// copy of `b`, so that it stays in the outer cache for all tiles.
struct Cut {
  std::int64_t tile_rows = 64, group_columns = 192, stripe_columns;
};

constexpr std::int64_t kStripeBytes = 4 << 20;
constexpr std::int64_t kWantedTiles = 32;

Cut cut_of(std::int64_t rows, std::int64_t columns, std::int64_t steps) {
  Cut cut;
  if (rows <= cut.tile_rows) {
    while (cut.group_columns > 48 && ceil_div(columns, cut.group_columns) < kWantedTiles)
      cut.group_columns /= 2;
  } else {
    while (cut.tile_rows > 16 && ceil_div(rows, cut.tile_rows) < kWantedTiles) cut.tile_rows /= 2;
  }
  const std::int64_t stripe = kStripeBytes / std::max<std::int64_t>(1, steps * 4);
  cut.stripe_columns = std::max(cut.group_columns, stripe / cut.group_columns * cut.group_columns);
  return cut;
}

/// One product; the packed copies are scratch from the backend's arena.
class Product {
 public:
  Product(Backend& backend, const Threads& threads, const GemmKernels& kernels, const Operand& a,
          const Operand& b, const GemmOutput& out)
      : threads_(threads), kernels_(kernels), a_(a), b_(b), out_(out) {
    steps_ = kernels.steps(a.element, a.contraction);
    row_stride_ = kernels.packed_row_stride(a);
    cut_ = cut_of(a.lanes, b.lanes, steps_);
    one_tile_ = a.lanes <= cut_.tile_rows;
    const std::int64_t teams = threads.count();
    row_tile_units_ = cut_.tile_rows * (row_stride_ == 0 ? steps_ : row_stride_);
    group_units_ = cut_.group_columns * steps_;
    const std::int64_t groups = ceil_div(std::min(b.lanes, cut_.stripe_columns), cut_.group_columns);
    packed_a_ = scratch(backend, (one_tile_ ? 1 : teams) * row_tile_units_);
    packed_b_ = scratch(backend, (one_tile_ ? teams : groups) * group_units_);
    sums_ = scratch(backend, teams * cut_.tile_rows * cut_.group_columns);
  }

  bool has_few_rows() const { return one_tile_; }
  void run() const { one_tile_ ? run_one_tile() : run_stripes(); }

 private:
  static Tensor scratch(Backend& backend, std::int64_t floats) {
    return backend.allocate(DType::f32, {std::max<std::int64_t>(16, floats)});
  }

  /// Packed columns serve all tiles of rows; every thread packs the rows of its tiles right before use.
  void run_stripes() const {
    for (std::int64_t column = 0; column < b_.lanes; column += cut_.stripe_columns) {
      const Range stripe{column, std::min(b_.lanes, column + cut_.stripe_columns)};
      const std::int64_t groups = ceil_div(stripe.size(), cut_.group_columns);
      threads_.for_each(groups, [&](std::int64_t group) { pack_group(stripe, group, packed_group(group)); });
      threads_.for_each_on_thread(ceil_div(a_.lanes, cut_.tile_rows), [&](std::int64_t tile, int thread) {
        const Range rows = block_of({0, a_.lanes}, tile, cut_.tile_rows);
        float* packed = packed_a_.data<float>() + thread * row_tile_units_;
        kernels_.pack_rows(a_, rows.begin, rows.end, packed);
        for (std::int64_t group = 0; group < groups; ++group) {
          multiply(rows, block_of(stripe, group, cut_.group_columns), packed, packed_group(group), thread);
        }
      });
    }
  }

  /// Packed columns serve once, so they are packed right before use and stay in the inner cache.
  void run_one_tile() const {
    const Range rows{0, a_.lanes}, columns{0, b_.lanes};
    kernels_.pack_rows(a_, 0, a_.lanes, packed_a_.data<float>());
    threads_.for_each_on_thread(ceil_div(columns.size(), cut_.group_columns),
                                [&](std::int64_t group, int thread) {
                                  pack_group(columns, group, packed_group(thread));
                                  multiply(rows, block_of(columns, group, cut_.group_columns),
                                           packed_a_.data<float>(), packed_group(thread), thread);
                                });
  }

  float* packed_group(std::int64_t index) const { return packed_b_.data<float>() + index * group_units_; }
  void pack_group(const Range& columns, std::int64_t group, float* packed) const {
    const Range lanes = block_of(columns, group, cut_.group_columns);
    kernels_.pack_columns(b_, lanes.begin, lanes.end, packed);
  }

  void multiply(const Range& rows, const Range& columns, const float* a, const float* b, int thread) const {
    const GemmTile tile{.element = a_.element,
                        .a = a,
                        .a_stride = row_stride_,
                        .b = b,
                        .rows = rows.size(),
                        .columns = columns.size(),
                        .contraction = a_.contraction,
                        .sums = sums_.data<float>() + thread * cut_.tile_rows * cut_.group_columns,
                        .out = out_.from(rows.begin, columns.begin)};
    kernels_.multiply(tile);
  }

  const Threads& threads_;
  const GemmKernels& kernels_;
  Operand a_, b_;
  GemmOutput out_;
  Cut cut_;
  bool one_tile_ = false;  ///< few rows
  std::int64_t steps_ = 0, row_stride_ = 0, row_tile_units_ = 0, group_units_ = 0;
  Tensor packed_a_, packed_b_, sums_;
};

}  // namespace

void CpuBackend::gemm(Gemm kind, const GemmOperand& a, const GemmOperand& b, const Tensor& bias,
                      bool accumulate, const Tensor& out) {
  check_gemm(kind, a, b, bias, out, OperandForms::any);
  if (out.elements() == 0) return;
  const ProductOperands operands = product_operands(*this, a, b);
  const GemmOutput output{.data = out.raw(),
                          .stride = out.row_stride(),
                          .is_bf16 = out.dtype() == DType::bf16,
                          .accumulate = accumulate,
                          .scale = operands.scale.value_or(1),
                          .bias = bias ? bias.data<float>() : nullptr};
  const Operand rows = operand_of(operands.a, kind == Gemm::wgrad);
  const Operand columns = operand_of(operands.b, kind != Gemm::fprop);
  last_gemm_ = LastGemm{operands.a.dtype(), LastGemm::Way::in_place, operands.a.dtype() != a.dtype()};
  // With a unit too: the time of few rows is that of reading the columns.
  if (few_rows_ && few_rows_->takes(rows, columns)) {
    return few_rows_products_.multiply(*this, *few_rows_, rows, columns, output);
  }
  if (unit_ && rows.element != Element::f32) {
    last_gemm_->way = LastGemm::Way::matrix_unit;
    return cpu::multiply_by_unit(*this, threads_, *unit_->gemm, rows, columns, output);
  }
  const Product product(*this, threads_, *kernels_.gemm, rows, columns, output);
  product.run();
  last_gemm_->way = product.has_few_rows() ? LastGemm::Way::one_tile : LastGemm::Way::stripes;
}

std::string CpuBackend::last_gemm_kernel() const {
  if (!last_gemm_) return {};
  const auto& [dtype, way, from_blocks] = *last_gemm_;
  const bool in_place = way == LastGemm::Way::in_place, by_unit = way == LastGemm::Way::matrix_unit;
  const char* const widened = from_blocks      ? ", operands widened to bf16 first"
                              : !is_fp8(dtype) ? ""
                              : in_place       ? ", widened to bf16 in registers"
                                               : ", widened to bf16 while packing";
  const char* const cut = in_place                         ? ", few rows, weights in place"
                          : by_unit                        ? ""
                          : way == LastGemm::Way::one_tile ? ", few rows"
                                                           : ", packed stripes";
  return fmt::format("{} {}{}{}", by_unit ? unit_->name : cpu::name_of(level_), name_of(dtype), widened, cut);
}

}  // namespace quaver
