#include <cuda_runtime_api.h>

#include <fstream>
#include <regex>

#include "base/check.h"
#include "ops/backend_facts.h"
#include "ops/cuda/chip_types.h"
#include "ops/cuda/device/cublas.h"
#include "ops/cuda/device/cublas_loader.h"
#include "ops/cuda/device/cudnn.h"
#include "ops/cuda/device/runtime.h"

namespace quaver {
namespace {

/// "13.0" of 13000.
std::string cuda_version(int number) {
  return fmt::format("{}.{}", number / 1000, number % 1000 / 10);
}

/// The kernel module's own version; empty where it does not say.
std::string driver_release() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string line;
  std::getline(file, line);
  std::smatch match;
  return std::regex_search(line, match, std::regex(R"((\d+\.\d+(\.\d+)?))")) ? match.str(1) : "";
}

DeviceFacts device_facts(int index) {
  DeviceFacts facts;
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) {
    facts.name = fmt::format("GPU {} does not answer", index);
    return facts;
  }
  facts.name = properties.name;
  facts.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  std::size_t available = 0, total = 0;
  if (cudaSetDevice(index) == cudaSuccess && cudaMemGetInfo(&available, &total) == cudaSuccess)
    facts.available_bytes = static_cast<std::int64_t>(available);
  facts.details = {{"compute capability", fmt::format("{}.{}", properties.major, properties.minor)},
                   {"multiprocessors", fmt::format("{}", properties.multiProcessorCount)}};
  facts.types = cuda::types_of_chip(10 * properties.major + properties.minor);
  return facts;
}

/// With a device also which recipes in blocks it multiplies there.
LibraryFact cublas_fact(bool has_device) {
  const std::size_t version = cuda::load_cublas().version();
  LibraryFact fact{"cuBLASLt", fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100)};
  if (!has_device) return fact;
  const auto library = cuda::make_cublas(nullptr);
  for (const auto& [recipe, scales] :
       {std::pair("block", cuda::FactorScales::rows), {"mxfp8", cuda::FactorScales::mx}}) {
    const std::string why = library->why_no_blocks(scales);
    fact.version += fmt::format("; recipe {}: {}", recipe, why.empty() ? "yes" : "no, " + why);
  }
  return fact;
}

/// On which stream it would run does not matter here.
LibraryFact attention_fact() {
  const cuda::FoundAttention found = cuda::choose_attention(nullptr);
  if (!found.library) return {"attention", fmt::format("Quaver's own kernels: {}", found.why_not)};
  return {"attention",
          fmt::format("{}; with document borders Quaver's own kernels", found.library->describe())};
}

}  // namespace

BackendFacts find_cuda_facts() {
  BackendFacts facts{.backend = "cuda"};
  int driver = 0, runtime = 0, devices = 0;
  if (cudaRuntimeGetVersion(&runtime) == cudaSuccess)
    facts.libraries.push_back({"CUDA runtime (linked)", cuda_version(runtime)});
  if (const std::string release = driver_release(); !release.empty())
    facts.libraries.push_back({"NVIDIA driver", release});
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0)
    facts.libraries.push_back({"CUDA served by the driver", cuda_version(driver)});
  if (driver > 0 && cudaGetDeviceCount(&devices) == cudaSuccess) {
    for (int i = 0; i < devices; ++i) facts.devices.push_back(device_facts(i));
  }
  cudaGetLastError();  // what failed above is told by what is absent
  // What a run would meet, in the words in which it would be told.
  std::vector<std::string> missing;
  bool has_device = false;
  try {
    cuda::make_runtime();
    has_device = true;
  } catch (const Error& error) {
    missing.emplace_back(error.what());
  }
  try {
    facts.libraries.push_back(cublas_fact(has_device));
  } catch (const Error& error) {
    missing.emplace_back(error.what());
  }
  try {
    facts.libraries.push_back(attention_fact());
  } catch (const Error& error) {
    missing.emplace_back(error.what());
  }
  facts.missing = fmt::format("{}", fmt::join(missing, "; "));
  return facts;
}

}  // namespace quaver
