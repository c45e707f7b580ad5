#include "ops/cpu/few_rows_products.h"

#include <algorithm>

#include "ops/cpu/ranges.h"
#include "ops/cpu/shared_tiles.h"

namespace quaver::cpu {
namespace {

constexpr std::int64_t kLineBytes = 64;
/// More than the weights of a model: what is remembered of freed ones goes with the rest.
constexpr std::size_t kMostFollowers = 1 << 14;

ColumnLines lines_of(const Operand& columns, const Range& range) {
  const std::int64_t size = columns.element == Element::bf16 ? 2 : 1, stride = columns.stride * size;
  return {.first = static_cast<const std::byte*>(columns.data) + range.begin * stride,
          .stride = stride,
          .bytes = columns.contraction * size,
          .count = range.size()};
}

/// Its first columns, as many as `tile` fetches while it is multiplied.
ColumnLines fetched_during(const ColumnLines& tile, ColumnLines next) {
  if (next.count == 0 || next.bytes == 0) return {};
  const std::int64_t lines = tile.count * ceil_div(tile.bytes, kLineBytes);
  next.count = std::min(next.count, lines / ceil_div(next.bytes, kLineBytes));
  return next;
}

}  // namespace

const Operand* FewRowsProducts::follower_of(const Operand& columns) {
  if (followers_.size() >= kMostFollowers) followers_.clear();
  if (last_) followers_[last_] = columns;
  last_ = columns.data;
  const auto found = followers_.find(columns.data);
  return found == followers_.end() ? nullptr : &found->second;
}

void FewRowsProducts::multiply(Backend& backend, const FewRowsKernels& few, const Operand& a,
                               const Operand& b, const GemmOutput& out) {
  const std::int64_t stride = few.row_stride(a);
  const Tensor packed = backend.allocate(DType::f32, {a.lanes * stride});
  few.pack_rows(a, packed.data<float>());
  const auto tiles_of = [&](const Operand& columns) { return ceil_div(columns.lanes, few.columns); };
  const auto tile_of = [&](const Operand& columns, std::optional<std::int64_t> index) {
    return index ? lines_of(columns, block_of({0, columns.lanes}, *index, few.columns)) : ColumnLines{};
  };
  const Operand* const follower = follower_of(b);
  SharedTiles tiles(tiles_of(b), threads_.count());
  threads_.for_each_on_thread(
      std::min<std::int64_t>(tiles_of(b), threads_.count()), [&](std::int64_t, int thread) {
        Fetched& fetched = fetched_[static_cast<std::size_t>(thread)];
        while (const auto turn = tiles.take(thread)) {
          const ColumnLines tile = tile_of(b, turn->tile);
          ColumnLines next = tile_of(b, turn->next);
          if (!turn->next && follower)
            next = tile_of(*follower, SharedTiles::first(tiles_of(*follower), threads_.count(), thread));
          next = fetched_during(tile, next);
          const std::int64_t begin = turn->tile * few.columns;
          few.multiply({.rows = packed.data<float>(),
                        .row_stride = stride,
                        .row_count = a.lanes,
                        .columns = b,
                        .begin = begin,
                        .end = begin + tile.count,
                        .fetched = fetched.first == tile.first ? std::min(fetched.columns, tile.count) : 0,
                        .next = next,
                        .out = out});
          fetched = {next.first, next.count};
        }
      });
}

}  // namespace quaver::cpu
