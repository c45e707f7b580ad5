#include "ops/cpu/cpu_backend.h"

#include <fmt/format.h>

namespace quaver {

CpuBackend::CpuBackend(int threads) : CpuBackend(threads, cpu::choose_level()) {}

CpuBackend::CpuBackend(int threads, cpu::Level level) : CpuBackend(threads, level, cpu::kernels_of(level)) {}

CpuBackend::CpuBackend(int threads, cpu::Level level, const cpu::Kernels& kernels)
    : threads_(threads), level_(level), kernels_(kernels) {}

std::string CpuBackend::describe() const {
  return fmt::format("cpu ({}, {} {})", cpu::name_of(level_), threads_.count(),
                     threads_.count() == 1 ? "thread" : "threads");
}

}  // namespace quaver
