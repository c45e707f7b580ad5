#include "ops/cpu/unit_product.h"

#include <algorithm>

#include "ops/cpu/ranges.h"

namespace quaver::cpu {
namespace {

constexpr std::int64_t kMostKept = 256, kLeastKept = 64;  ///< lanes of the block that a thread keeps
constexpr std::int64_t kPassing = 256;                    ///< lanes that pass at a time
constexpr std::int64_t kBlocksPerThread = 2;
constexpr std::int64_t kStripeBytes = 32 << 20;  ///< of what is packed at once of the passing operand

/// One operand and its packed form.
struct Side {
  Operand operand;
  std::int64_t lane_units;  ///< packed, of one lane
  void (*pack)(const Operand& source, std::int64_t begin, std::int64_t end, float* packed);
};

class UnitProduct {
 public:
  UnitProduct(Backend& backend, const Threads& threads, const GemmKernels& kernels, const Operand& rows,
              const Operand& columns, const GemmOutput& out)
      : threads_(threads),
        kernels_(kernels),
        out_(out),
        keeps_columns_(columns.lanes > rows.lanes),
        kept_{rows, kernels.packed_row_stride(rows), kernels.pack_rows},
        passing_{columns, kernels.steps(columns.element, columns.contraction), kernels.pack_columns} {
    if (keeps_columns_) std::swap(kept_, passing_);
    while (block_ > kLeastKept && ceil_div(kept_.operand.lanes, block_) < kBlocksPerThread * threads.count())
      block_ /= 2;
    block_ = std::min(block_, round_up(kept_.operand.lanes));
    const std::int64_t lane_bytes = 4 * std::max<std::int64_t>(1, passing_.lane_units);
    stripe_ = std::min(std::max(kPassing, kStripeBytes / lane_bytes / kPassing * kPassing),
                       round_up(passing_.operand.lanes));
    packed_passing_ = scratch(backend, stripe_ * passing_.lane_units);
    packed_kept_ = scratch(backend, threads.count() * block_ * kept_.lane_units);
    sums_ = scratch(backend, threads.count() * block_ * kPassing);
  }

  void run() const {
    const Range all{0, passing_.operand.lanes};
    for (std::int64_t index = 0; index * stripe_ < all.size(); ++index)
      run_stripe(block_of(all, index, stripe_));
  }

 private:
  static Tensor scratch(Backend& backend, std::int64_t floats) {
    return backend.allocate(DType::f32, {std::max<std::int64_t>(16, floats)});
  }
  std::int64_t round_up(std::int64_t lanes) const {
    return ceil_div(lanes, kernels_.row_panel) * kernels_.row_panel;
  }

  void run_stripe(const Range& stripe) const {
    const std::int64_t parts = ceil_div(stripe.size(), kPassing);
    threads_.for_each(parts, [&](std::int64_t part) {
      const Range lanes = block_of(stripe, part, kPassing);
      passing_.pack(passing_.operand, lanes.begin, lanes.end, packed_part(part));
    });
    const Range all{0, kept_.operand.lanes};
    threads_.for_each_on_thread(ceil_div(all.size(), block_), [&](std::int64_t index, int thread) {
      const Range lanes = block_of(all, index, block_);
      float* const packed = packed_kept_.data<float>() + thread * block_ * kept_.lane_units;
      kept_.pack(kept_.operand, lanes.begin, lanes.end, packed);
      for (std::int64_t part = 0; part < parts; ++part)
        multiply(lanes, packed, block_of(stripe, part, kPassing), packed_part(part), thread);
    });
  }

  float* packed_part(std::int64_t part) const {
    return packed_passing_.data<float>() + part * kPassing * passing_.lane_units;
  }

  void multiply(const Range& kept, const float* packed_kept, const Range& passing,
                const float* packed_passing, int thread) const {
    const Range &rows = keeps_columns_ ? passing : kept, &columns = keeps_columns_ ? kept : passing;
    const Side& row_side = keeps_columns_ ? passing_ : kept_;
    const GemmTile tile{.element = row_side.operand.element,
                        .a = keeps_columns_ ? packed_passing : packed_kept,
                        .a_stride = row_side.lane_units,
                        .b = keeps_columns_ ? packed_kept : packed_passing,
                        .rows = rows.size(),
                        .columns = columns.size(),
                        .contraction = row_side.operand.contraction,
                        .sums = sums_.data<float>() + thread * block_ * kPassing,
                        .out = out_.from(rows.begin, columns.begin)};
    kernels_.multiply(tile);
  }

  const Threads& threads_;
  const GemmKernels& kernels_;
  GemmOutput out_;
  bool keeps_columns_;
  Side kept_, passing_;
  std::int64_t block_ = kMostKept, stripe_ = 0;  ///< lanes
  Tensor packed_passing_, packed_kept_, sums_;
};

}  // namespace

void multiply_by_unit(Backend& backend, const Threads& threads, const GemmKernels& kernels,
                      const Operand& rows, const Operand& columns, const GemmOutput& out) {
  UnitProduct(backend, threads, kernels, rows, columns, out).run();
}

}  // namespace quaver::cpu
