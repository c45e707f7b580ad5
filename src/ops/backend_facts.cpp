#include "ops/backend_facts.h"

#include <algorithm>

#include "base/check.h"

namespace quaver {
namespace {

BackendFacts reference_facts() {
  BackendFacts facts{.backend = "reference"};
  facts.devices.push_back({.name = "one thread of scalar code: the specification, for checking"});
  for (const char* type : {"f32", "bf16", "e4m3", "e5m2"})
    facts.devices[0].types.push_back({type, false, "scalar FP32"});
  return facts;
}

bool has_native_fp8(const BackendFacts& facts) {
  const auto native = [](const TypeFact& type) { return type.type == "e4m3" && type.native; };
  return std::any_of(facts.devices.begin(), facts.devices.end(), [&](const DeviceFacts& device) {
    return std::any_of(device.types.begin(), device.types.end(), native);
  });
}

}  // namespace

std::vector<BackendFacts> find_backend_facts() {
  return {reference_facts(), find_cpu_facts(), find_cuda_facts()};
}

BackendChoice recommend_backend(const std::vector<BackendFacts>& facts) {
  const auto find = [&](const char* name) {
    return std::find_if(facts.begin(), facts.end(),
                        [&](const BackendFacts& backend) { return backend.backend == name; });
  };
  const auto cuda = find("cuda"), cpu = find("cpu");
  if (cuda != facts.end() && cuda->usable()) {
    const std::string device = cuda->devices.empty() ? "a GPU" : cuda->devices.front().name;
    return {"cuda",
            fmt::format("{} {}", device, has_native_fp8(*cuda) ? "multiplies FP8 natively" : "can be used")};
  }
  const std::string why_not = cuda == facts.end() ? "there is no cuda backend" : cuda->missing;
  if (cpu != facts.end() && cpu->usable()) return {"cpu", why_not};
  return {"reference", cpu == facts.end() ? why_not : cpu->missing};
}

}  // namespace quaver
