#include "ops/cpu/cpu_backend.h"

#include <fmt/format.h>

#include "ops/cpu/kernels/gemm.h"

namespace quaver {

CpuBackend::CpuBackend(int threads, Products products) : CpuBackend(threads, cpu::choose_level(), products) {}

CpuBackend::CpuBackend(int threads, cpu::Level level, Products products)
    : CpuBackend(threads, level, cpu::kernels_of(level)) {
  products_ = products;
  if (products == Products::fast) unit_ = cpu::find_matrix_unit(level);
}

CpuBackend::CpuBackend(int threads, cpu::Level level, const cpu::Kernels& kernels)
    : threads_(threads),
      few_rows_products_(threads_),
      level_(level),
      kernels_(kernels),
      few_rows_(cpu::has_undivided_dot_products() ? kernels.gemm->few_rows_by_pairs
                                                  : kernels.gemm->few_rows_by_numbers) {}

std::string CpuBackend::describe() const {
  const bool missing = products_ == Products::fast && !unit_;
  return fmt::format("cpu ({}{}, {} {}{})", cpu::name_of(level_),
                     unit_ ? fmt::format(" + {}", unit_->name) : "", threads_.count(),
                     threads_.count() == 1 ? "thread" : "threads",
                     missing ? "; products = \"fast\" has no matrix unit here and is exact" : "");
}

}  // namespace quaver
