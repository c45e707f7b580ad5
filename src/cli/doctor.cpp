#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/format.h"
#include "ops/backend_facts.h"

namespace quaver::cli {
namespace {

using nlohmann::ordered_json;

ordered_json to_json(const DeviceFacts& device) {
  ordered_json json = {{"name", device.name},
                       {"memory_bytes", device.memory_bytes},
                       {"available_bytes", device.available_bytes}};
  for (const auto& [name, value] : device.details) json["details"][name] = value;
  for (const TypeFact& type : device.types)
    json["types"][type.type] = {{"native", type.native}, {"how", type.how}};
  return json;
}

ordered_json to_json(const BackendFacts& backend) {
  ordered_json json = {{"backend", backend.backend},
                       {"usable", backend.usable()},
                       {"missing", backend.missing},
                       {"devices", ordered_json::array()},
                       {"libraries", ordered_json::object()}};
  for (const DeviceFacts& device : backend.devices) json["devices"].push_back(to_json(device));
  for (const LibraryFact& library : backend.libraries) json["libraries"][library.name] = library.version;
  return json;
}

void print_device(const DeviceFacts& device) {
  fmt::print("  {}\n", device.name);
  if (device.memory_bytes > 0)
    fmt::print("    {:<24}{}, {} available\n", "memory", bytes(device.memory_bytes),
               bytes(device.available_bytes));
  for (const auto& [name, value] : device.details) fmt::print("    {:<24}{}\n", name, value);
  for (const TypeFact& type : device.types)
    fmt::print("    {:<24}{}: {}\n", type.type, type.native ? "native" : "not native", type.how);
}

void print_backend(const BackendFacts& backend) {
  fmt::print("{}  {}\n", backend.backend,
             backend.usable() ? "can be used" : "cannot be used: " + backend.missing);
  for (const DeviceFacts& device : backend.devices) print_device(device);
  for (const LibraryFact& library : backend.libraries)
    fmt::print("  {:<26}{}\n", library.name, library.version);
}

}  // namespace

int doctor(const DoctorArguments& arguments) {
  const std::vector<BackendFacts> facts = find_backend_facts();
  const BackendChoice choice = recommend_backend(facts);
  if (arguments.json) {
    ordered_json json = {{"backends", ordered_json::array()}};
    for (const BackendFacts& backend : facts) json["backends"].push_back(to_json(backend));
    json["recommended"] = {{"backend", choice.backend}, {"why", choice.why}};
    fmt::print("{}\n", json.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
    return 0;
  }
  for (const BackendFacts& backend : facts) print_backend(backend);
  fmt::print("a run uses the backend it names; train here with backend = \"{}\": {}\n", choice.backend,
             choice.why);
  return 0;
}

}  // namespace quaver::cli
