#include "ops/cpu/cpu_backend.h"

#include <fmt/format.h>

namespace quaver {

CpuBackend::CpuBackend(int threads)
    : threads_(threads), level_(cpu::choose_level()), kernels_(cpu::kernels_of(level_)) {}

std::string CpuBackend::describe() const {
  return fmt::format("cpu ({}, {} {})", cpu::name_of(level_), threads_.count(),
                     threads_.count() == 1 ? "thread" : "threads");
}

}  // namespace quaver
