#include <unistd.h>

#include <charconv>
#include <fstream>

#include "base/check.h"
#include "base/threads.h"
#include "ops/backend_facts.h"
#include "ops/cpu/levels.h"

namespace quaver {
namespace {

/// The text after "key   :" in a file such as /proc/cpuinfo; empty when there is none.
std::string value_in(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t colon = line.find(':'), value = line.find_first_not_of(" \t", colon + 1);
    if (colon != std::string::npos && value != std::string::npos) return line.substr(value);
  }
  return "";
}

std::int64_t leading_number(const std::string& text) {
  std::int64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

/// The memory that a container may use; 0: no limit is known.
std::int64_t container_limit() {
  std::ifstream file("/sys/fs/cgroup/memory.max");
  std::string text;
  std::getline(file, text);
  return leading_number(text);
}

std::vector<TypeFact> types_of(cpu::Level level) {
  const bool dot_products = level == cpu::Level::avx512;
  const std::string bf16 =
      dot_products ? "BF16 dot-product instructions, FP32 sums" : "widened to FP32, the same sums";
  const std::string fp8 = "widened exactly to BF16; " + bf16;
  return {{"f32", true, "FP32"}, {"bf16", dot_products, bf16}, {"e4m3", false, fp8}, {"e5m2", false, fp8}};
}

std::string unit_of(cpu::Level level) {
  const cpu::MatrixUnit* const unit = cpu::find_matrix_unit(level);
  if (!unit) return "none: products = \"fast\" computes exactly";
  return fmt::format("{}: for products = \"fast\", BF16 and FP8 widened exactly to BF16", unit->name);
}

std::string names_of(const std::vector<cpu::Level>& levels) {
  std::vector<std::string_view> names;
  for (const cpu::Level level : levels) names.push_back(cpu::name_of(level));
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace

BackendFacts find_cpu_facts() {
  BackendFacts facts{.backend = "cpu"};
  DeviceFacts processor;
  processor.name = value_in("/proc/cpuinfo", "model name");
  if (processor.name.empty()) processor.name = "unknown processor";
  processor.memory_bytes = leading_number(value_in("/proc/meminfo", "MemTotal")) * 1024;
  processor.available_bytes = leading_number(value_in("/proc/meminfo", "MemAvailable")) * 1024;
  if (processor.memory_bytes == 0)
    processor.memory_bytes = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  if (const std::int64_t limit = container_limit(); limit > 0 && limit < processor.memory_bytes) {
    processor.details.emplace_back("memory limit of this container", fmt::format("{} bytes", limit));
  }
  processor.details.emplace_back("threads", fmt::format("{}", available_threads()));
  processor.details.emplace_back("levels it runs", names_of(cpu::supported_levels()));
  const char* const wanted = std::getenv("QUAVER_ISA");
  const bool overridden = wanted && *wanted;
  try {
    const cpu::Level level = cpu::choose_level();
    processor.details.emplace_back("instruction-set level", std::string(cpu::name_of(level)));
    processor.details.emplace_back(
        "why that level", overridden ? fmt::format("QUAVER_ISA={}", wanted) : "the highest that it runs");
    processor.details.emplace_back("matrix unit", unit_of(level));
    processor.types = types_of(level);
  } catch (const Error& error) {
    facts.missing = error.what();
  }
  facts.devices.push_back(std::move(processor));
  return facts;
}

}  // namespace quaver
