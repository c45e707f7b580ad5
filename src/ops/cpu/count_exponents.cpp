#include <array>
#include <bit>

#include "ops/contracts.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/work.h"

namespace quaver {

using namespace cpu;

namespace {

using Counts = std::array<std::int64_t, kExponents>;

void count(const float* row, std::int64_t cols, Counts& counts) {
  for (std::int64_t n = 0; n < cols; ++n) ++counts[std::bit_cast<std::uint32_t>(row[n]) >> 23 & 0xFF];
}
void count(const bf16* row, std::int64_t cols, Counts& counts) {
  for (std::int64_t n = 0; n < cols; ++n) ++counts[row[n].bits >> 7 & 0xFF];
}

}  // namespace

void CpuBackend::count_exponents(const Tensor& x, const Tensor& counts) {
  check_count_exponents(x, counts);
  const Pieces pieces = Pieces::of_rows({x.rows(), x.cols()});
  std::vector<Counts> of_thread(static_cast<std::size_t>(threads_.count()));
  threads_.for_each_on_thread(pieces.count(), [&](std::int64_t index, int thread) {
    const Piece piece = pieces.at(index);
    for (std::int64_t m = piece.row; m < piece.row + piece.extent.rows; ++m) {
      Counts& own = of_thread[static_cast<std::size_t>(thread)];
      const std::int64_t begin = m * x.row_stride();
      if (x.dtype() == DType::bf16) {
        count(x.data<bf16>() + begin, x.cols(), own);
      } else {
        count(x.data<float>() + begin, x.cols(), own);
      }
    }
  });
  auto* total = counts.data<std::int64_t>();
  for (const Counts& own : of_thread) {
    for (std::size_t e = 0; e < own.size(); ++e) total[e] += own[e];
  }
}

}  // namespace quaver
