#include "ops/cpu/unit_product.h"

#include <algorithm>

#include "ops/cpu/ranges.h"

namespace quaver::cpu {
namespace {

constexpr std::int64_t kMostKept = 256, kLeastKept = 64;  ///< lanes of the block that a thread keeps
constexpr std::int64_t kPassing = 256;                    ///< lanes that pass at a time
constexpr std::int64_t kBlocksPerThread = 2;
constexpr std::int64_t kStripeBytes = 32 << 20;  ///< of what is packed at once of the passing operand
/// So much of it, packed, stays in a core's outer cache while all of it passes every few lanes of the other.
constexpr std::int64_t kNearBytes = 1 << 20;
constexpr std::int64_t kLineOfCodes = 64;  ///< in a cache line

/// One operand and its packed form.
struct Side {
  Operand operand;
  std::int64_t lane_units;  ///< packed, of one lane
  void (*pack)(const Operand& source, std::int64_t begin, std::int64_t end, float* packed);
};

/// Some lanes of an operand.
Operand lanes_of(const Operand& operand, const Range& lanes) {
  const std::int64_t size = operand.element == Element::bf16 ? 2 : 1;
  Operand part = operand;
  part.data = static_cast<const std::byte*>(operand.data) +
              lanes.begin * (operand.along_contraction ? operand.stride : 1) * size;
  part.lanes = lanes.size();
  return part;
}

class UnitProduct {
 public:
  UnitProduct(Backend& backend, const Threads& threads, const UnitGemmKernels& kernels, const Operand& rows,
              const Operand& columns, const GemmOutput& out)
      : threads_(threads),
        kernels_(kernels),
        out_(out),
        kept_{rows, kernels.row_stride(rows), kernels.pack_rows},
        passing_{columns, kernels.steps(columns.element, columns.contraction), kernels.pack_columns} {
    choose_kept();
    cut();
    const bool carries = kernels.steps(rows.element, rows.contraction) > kernels.carried_from;
    thread_sums_ = carries ? thread_kept_ * (in_turn_ > 0 ? stripe_ : kPassing) : 0;
    packed_passing_ = scratch(backend, stripe_ * passing_.lane_units);
    packed_kept_ = scratch(backend, threads.count() * thread_kept_ * kept_.lane_units);
    if (carries) sums_ = scratch(backend, threads.count() * thread_sums_);
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
  static std::int64_t bytes_of_lane(const Side& side) {
    return 4 * std::max<std::int64_t>(1, side.lane_units);
  }
  static bool is_near(const Side& side) { return side.operand.lanes * bytes_of_lane(side) <= kNearBytes; }
  std::int64_t round_up(std::int64_t lanes) const { return ceil_div(lanes, kernels_.panel) * kernels_.panel; }

  /// Rows, so that the output is written along its rows, if all columns stay near and there are enough rows for all threads; else the
  /// operand with more lanes.
  void choose_kept() {
    const bool rows_suffice = kept_.operand.lanes >= kBlocksPerThread * kLeastKept * threads_.count();
    keeps_columns_ = passing_.operand.lanes > kept_.operand.lanes && !(is_near(passing_) && rows_suffice);
    if (keeps_columns_) std::swap(kept_, passing_);
  }

  void cut() {
    stripe_ = std::min(std::max(kPassing, kStripeBytes / bytes_of_lane(passing_) / kPassing * kPassing),
                       round_up(passing_.operand.lanes));
    const std::int64_t lanes = kept_.operand.lanes;
    const bool near = is_near(passing_);
    if (threads_.count() > 1) {
      while (block_ > kLeastKept && ceil_div(lanes, block_) < kBlocksPerThread * threads_.count())
        block_ /= 2;
    } else if (near) {
      block_ = round_up(lanes);
    }
    block_ = std::min(block_, round_up(lanes));
    if (near) in_turn_ = kept_.operand.along_contraction ? kernels_.panel : std::min(block_, kLineOfCodes);
    thread_kept_ = near ? in_turn_ : block_;
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
      if (in_turn_ > 0) return multiply(lanes, stripe, packed_part(0), thread);
      kept_.pack(kept_.operand, lanes.begin, lanes.end, packed_kept(thread));
      for (std::int64_t part = 0; part < parts; ++part)
        multiply(lanes, block_of(stripe, part, kPassing), packed_part(part), thread);
    });
  }

  float* packed_part(std::int64_t part) const {
    return packed_passing_.data<float>() + part * kPassing * passing_.lane_units;
  }
  float* packed_kept(int thread) const {
    return packed_kept_.data<float>() + thread * thread_kept_ * kept_.lane_units;
  }

  void multiply(const Range& kept, const Range& passing, float* packed_passing, int thread) const {
    const UnitLanes kept_lanes{lanes_of(kept_.operand, kept), packed_kept(thread), in_turn_};
    const UnitLanes passing_lanes{lanes_of(passing_.operand, passing), packed_passing};
    const Range &rows = keeps_columns_ ? passing : kept, &columns = keeps_columns_ ? kept : passing;
    const UnitTile tile{.rows = keeps_columns_ ? passing_lanes : kept_lanes,
                        .columns = keeps_columns_ ? kept_lanes : passing_lanes,
                        .sums = sums_ ? sums_.data<float>() + thread * thread_sums_ : nullptr,
                        .out = out_.from(rows.begin, columns.begin)};
    kernels_.multiply(tile);
  }

  const Threads& threads_;
  const UnitGemmKernels& kernels_;
  GemmOutput out_;
  bool keeps_columns_ = false;
  Side kept_, passing_;
  std::int64_t block_ = kMostKept, stripe_ = 0;  ///< lanes
  std::int64_t in_turn_ =
      0;  ///< lanes of what is kept that are packed when they are multiplied; 0: whole blocks
  std::int64_t thread_kept_ = 0, thread_sums_ = 0;
  Tensor packed_passing_, packed_kept_, sums_;
};

}  // namespace

void multiply_by_unit(Backend& backend, const Threads& threads, const UnitGemmKernels& kernels,
                      const Operand& rows, const Operand& columns, const GemmOutput& out) {
  UnitProduct(backend, threads, kernels, rows, columns, out).run();
}

}  // namespace quaver::cpu
