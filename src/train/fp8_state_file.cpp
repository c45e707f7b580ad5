#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "train/fp8_state.h"

namespace quaver {
namespace {

using nlohmann::ordered_json;

/// The value of `all` whose name is `name`.
template <typename E, std::size_t N>
E named(const std::array<E, N>& all, const std::string& name) {
  for (const E value : all) {
    if (name_of(value) == name) return value;
  }
  fail(ErrorKind::data, "unknown name \"{}\"", name);
}

constexpr std::array kDTypes = {DType::f32, DType::bf16, DType::e4m3, DType::e5m2,
                                DType::i32, DType::i64,  DType::u8,   DType::e2m1};
/// In the order of CastCounter.
constexpr std::array<const char*, kCastCounters> kCounterNames = {"cast", "saturated", "underflowed",
                                                                  "nan",  "infinite",  "zeros"};
constexpr std::array kFormats = {Fp8Format::hybrid, Fp8Format::e4m3};
constexpr std::array kAlgos = {AmaxCompute::max, AmaxCompute::most_recent, AmaxCompute::custom};

constexpr const char* kStateless = "stateless";

ordered_json recipe_to_json(const Recipe& recipe) {
  if (!is_delayed(recipe)) return {{"kind", kStateless}, {"name", describe(recipe)}};
  const auto& delayed = std::get<DelayedScaling>(recipe);
  return {{"kind", "delayed"},
          {"margin", delayed.margin},
          {"fp8_format", name_of(delayed.fp8_format)},
          {"amax_history_len", delayed.amax_history_len},
          {"amax_compute_algo", name_of(delayed.amax_compute_algo)},
          {"reduce_amax", delayed.reduce_amax}};
}

Recipe recipe_from_json(const ordered_json& json) {
  if (json.at("kind") == kStateless) return CustomScaling{json.at("name").get<std::string>()};
  if (json.at("kind") != "delayed") fail(ErrorKind::data, "unknown recipe {}", json.at("kind").dump());
  DelayedScaling recipe;
  recipe.margin = json.at("margin").get<int>();
  recipe.fp8_format = named(kFormats, json.at("fp8_format").get<std::string>());
  recipe.amax_history_len = json.at("amax_history_len").get<int>();
  recipe.amax_compute_algo = named(kAlgos, json.at("amax_compute_algo").get<std::string>());
  recipe.reduce_amax = json.at("reduce_amax").get<bool>();
  return recipe;
}

ordered_json gemm_to_json(const GemmRecord& gemm) {
  return {{"a", name_of(gemm.a)},      {"b", name_of(gemm.b)},          {"out", name_of(gemm.out)},
          {"fp8_runs", gemm.fp8_runs}, {"other_runs", gemm.other_runs}, {"recipe", gemm.recipe},
          {"kernel", gemm.kernel}};
}

GemmRecord gemm_from_json(const ordered_json& json) {
  const auto type = [&](const char* key) { return named(kDTypes, json.at(key).get<std::string>()); };
  return {type("a"),
          type("b"),
          type("out"),
          json.at("fp8_runs").get<std::int64_t>(),
          json.at("other_runs").get<std::int64_t>(),
          json.value("recipe", std::string()),
          json.value("kernel", std::string())};
}

ordered_json histogram_to_json(const ExponentHistogram& histogram) {
  return {{"top", histogram.top},
          {"counts", histogram.counts},
          {"below", histogram.below},
          {"zeros", histogram.zeros},
          {"non_finite", histogram.non_finite}};
}

ExponentHistogram histogram_from_json(const ordered_json& json) {
  ExponentHistogram histogram;
  histogram.top = json.at("top").get<int>();
  const auto counts = json.at("counts").get<std::vector<std::int64_t>>();
  if (counts.size() != kBinades)
    fail(ErrorKind::data, "expected {} binades, found {}", kBinades, counts.size());
  std::copy(counts.begin(), counts.end(), histogram.counts.begin());
  histogram.below = json.at("below").get<std::int64_t>();
  histogram.zeros = json.at("zeros").get<std::int64_t>();
  histogram.non_finite = json.at("non_finite").get<std::int64_t>();
  return histogram;
}

/// Counts of a slot: what its arrays do not say.
ordered_json counts_to_json(const SlotState& slot) {
  ordered_json json;
  for (std::size_t i = 0; i < slot.counters.size(); ++i) json[kCounterNames[i]] = slot.counters[i];
  if (slot.exponents) json["exponents"] = histogram_to_json(*slot.exponents);
  return json;
}

void read_counts(const ordered_json& json, SlotState& slot) {
  for (const char* name : kCounterNames) slot.counters.push_back(json.at(name).get<std::int64_t>());
  if (json.contains("exponents")) slot.exponents = histogram_from_json(json.at("exponents"));
}

ordered_json linear_to_json(const LinearState& state) {
  ordered_json json = {{"name", state.name}, {"owns_input", state.owns_input}};
  if (state.recipe) json["recipe"] = recipe_to_json(*state.recipe);
  for (std::size_t i = 0; i < kGemmNames.size(); ++i) {
    json[kGemmNames[i]] = gemm_to_json(state.gemms[i]);
    if (!state.policy[i].fp8) json[kGemmNames[i]]["why_not_fp8"] = state.policy[i].why_not;
  }
  for (const auto& [slot_name, member] : kSlots) {
    const auto& slot = state.*member;
    if (slot && !slot->counters.empty()) json["casts"][slot_name] = counts_to_json(*slot);
  }
  return json;
}

LinearState linear_from_json(const ordered_json& json) {
  LinearState state;
  state.name = json.at("name").get<std::string>();
  state.owns_input = json.at("owns_input").get<bool>();
  if (json.contains("recipe")) state.recipe = recipe_from_json(json.at("recipe"));
  for (std::size_t i = 0; i < kGemmNames.size(); ++i) {
    const ordered_json& gemm = json.at(kGemmNames[i]);
    state.gemms[i] = gemm_from_json(gemm);
    if (gemm.contains("why_not_fp8")) state.policy[i] = {false, gemm.at("why_not_fp8").get<std::string>()};
  }
  return state;
}

NamedArray array_of(const std::string& name, std::span<const float> values) {
  NamedArray array{name, DType::f32, {static_cast<std::int64_t>(values.size())}, {}};
  const auto bytes = std::as_bytes(values);
  array.bytes.assign(bytes.begin(), bytes.end());
  return array;
}

std::vector<float> values_of(const Safetensors& file, const std::string& name) {
  const NamedArray* array = file.find(name);
  if (!array || array->dtype != DType::f32 || array->shape.size() != 1 || array->bytes.empty()) {
    fail(ErrorKind::data, "expected {} as a vector of f32", name);
  }
  std::vector<float> values(array->bytes.size() / sizeof(float));
  std::memcpy(values.data(), array->bytes.data(), array->bytes.size());
  return values;
}

std::string channel_scales_name(const LinearState& state) {
  return state.name + ".input.channel_scales";
}

void read_slots(const Safetensors& file, LinearState& state) {
  for (const auto& [slot_name, member] : kSlots) {
    if (!state.recipe || !is_delayed(*state.recipe) || (member == &LinearState::input && !state.owns_input) ||
        (member == &LinearState::weight && !state.channel_scales.empty()))
      continue;
    const std::string prefix = state.name + "." + slot_name;
    state.*member = SlotState{
        values_of(file, prefix + ".scale").front(), values_of(file, prefix + ".amax_history"), {}, {}};
  }
}

void read_casts(const ordered_json& json, LinearState& state) {
  for (const auto& [slot_name, member] : kSlots) {
    if (!json.contains(slot_name)) continue;
    auto& slot = state.*member;
    if (!slot) slot.emplace();
    read_counts(json.at(slot_name), *slot);
  }
}

}  // namespace

Safetensors to_safetensors(const std::vector<LinearState>& states) {
  Safetensors file;
  ordered_json linears = ordered_json::array();
  for (const LinearState& state : states) {
    linears.push_back(linear_to_json(state));
    for (const auto& [slot_name, member] : kSlots) {
      const auto& slot = state.*member;
      if (!slot || slot->amax_history.empty()) continue;
      const std::string prefix = state.name + "." + slot_name;
      file.arrays.push_back(array_of(prefix + ".scale", std::span(&slot->scale, 1)));
      file.arrays.push_back(array_of(prefix + ".amax_history", slot->amax_history));
    }
    if (!state.channel_scales.empty())
      file.arrays.push_back(array_of(channel_scales_name(state), state.channel_scales));
  }
  file.metadata["linears"] = linears.dump();
  return file;
}

std::vector<LinearState> fp8_state_from(const Safetensors& file, const std::string& source) {
  try {
    std::vector<LinearState> states;
    for (const auto& json : ordered_json::parse(file.metadata.at("linears"))) {
      states.push_back(linear_from_json(json));
      const std::string channels = channel_scales_name(states.back());
      if (file.find(channels)) states.back().channel_scales = values_of(file, channels);
      read_slots(file, states.back());
      if (json.contains("casts")) read_casts(json.at("casts"), states.back());
    }
    return states;
  } catch (const Error& error) {
    fail(ErrorKind::data, "{}: {}", source, error.what());
  } catch (const std::exception& error) {
    fail(ErrorKind::data, "{}: not an FP8 state: {}", source, error.what());
  }
}

}  // namespace quaver
