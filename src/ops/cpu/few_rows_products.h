/// Products of few rows, whose time is that of reading the columns: memory should not wait between two of them either.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "base/threads.h"
#include "ops/cpu/kernels/gemm.h"
#include "quaver/backend.h"

namespace quaver::cpu {

/// Multiplies, and remembers what it multiplied after what: a model's weights are read in the same order for every token. While a
/// thread multiplies its last tile, it fetches the first one of the product that followed last time. A wrong guess costs time and no
/// more: what is fetched is not read.
class FewRowsProducts {
 public:
  explicit FewRowsProducts(const Threads& threads)
      : threads_(threads), fetched_(static_cast<std::size_t>(threads.count())) {}

  void multiply(Backend& backend, const FewRowsKernels& few, const Operand& a, const Operand& b,
                const GemmOutput& out);

 private:
  /// Columns that a thread has fetched last, for its next tile; threads do not share cache lines.
  struct alignas(64) Fetched {
    const void* first = nullptr;
    std::int64_t columns = 0;
  };

  /// What followed `columns` when they were multiplied before, if they were.
  const Operand* follower_of(const Operand& columns);

  Threads threads_;
  std::vector<Fetched> fetched_;
  std::unordered_map<const void*, Operand> followers_;  ///< by where columns stand
  const void* last_ = nullptr;
};

}  // namespace quaver::cpu
