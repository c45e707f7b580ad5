#include "ops/cpu/levels.h"

#include <cstdlib>
#include <string>
#ifdef QUAVER_MATRIX_UNIT
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "base/check.h"

namespace quaver::cpu {
namespace baseline {
extern const Kernels kernels;
}
#ifdef QUAVER_X86_LEVELS
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif
#ifdef QUAVER_MATRIX_UNIT
namespace amx {
extern const MatrixUnit matrix_unit;
}
#endif

namespace {

#ifdef QUAVER_X86_LEVELS
// __builtin_cpu_supports asks the operating system (XGETBV) too for everything that needs wider registers.
bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512bf16");
}
#endif

#ifdef QUAVER_MATRIX_UNIT
/// With GFNI, which all processors with AMX have: packing uses it.
bool processor_has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kGfni = 1u << 8;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & kGfni) != 0 && (d & kAmxBf16) != 0 &&
         (d & kAmxTile) != 0;
}

/// Tiles are 8 KiB that the system saves for a thread, so Linux (5.16 and later) gives them only to processes that ask. The
/// permission is the process's, and that of threads it already has.
bool system_grants_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

std::string names_of(const std::vector<Level>& levels) {
  std::string names;
  for (Level level : levels) names += (names.empty() ? "" : ", ") + std::string(name_of(level));
  return names;
}

}  // namespace

std::string_view name_of(Level level) {
  switch (level) {
    case Level::baseline:
      return "baseline";
    case Level::avx2:
      return "avx2";
    case Level::avx512:
      return "avx512";
  }
  fail(ErrorKind::usage, "cpu level {} does not exist", static_cast<int>(level));
}

std::vector<Level> supported_levels() {
  std::vector<Level> levels{Level::baseline};
#ifdef QUAVER_X86_LEVELS
  if (runs_avx2()) levels.push_back(Level::avx2);
  if (runs_avx512()) levels.push_back(Level::avx512);
#endif
  return levels;
}

Level choose_level() {
  const std::vector<Level> levels = supported_levels();
  const char* wanted = std::getenv("QUAVER_ISA");
  if (wanted == nullptr || *wanted == '\0') return levels.back();
  for (Level level : levels) {
    if (name_of(level) == wanted) return level;
  }
  fail(ErrorKind::usage, "QUAVER_ISA is '{}', but this build on this processor supports: {}", wanted,
       names_of(levels));
}

bool has_undivided_dot_products() {
#ifdef QUAVER_X86_LEVELS
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

const Kernels& kernels_of(Level level) {
#ifdef QUAVER_X86_LEVELS
  if (level == Level::avx2) return avx2::kernels;
  if (level == Level::avx512) return avx512::kernels;
#endif
  require(level == Level::baseline, "cpu level {} is not part of this build", name_of(level));
  return baseline::kernels;
}

const MatrixUnit* find_matrix_unit([[maybe_unused]] Level level) {
#ifdef QUAVER_MATRIX_UNIT
  if (level == Level::avx512 && processor_has_amx() && system_grants_tiles()) return &amx::matrix_unit;
#endif
  return nullptr;
}

}  // namespace quaver::cpu
