#include "formats/safetensors_header.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/check.h"

namespace quaver {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little,
              "safetensors is little-endian, and so are the machines we run on");

constexpr const char* kMetadataKey = "__metadata__";
constexpr std::pair<DType, const char*> kDTypes[] = {
    {DType::f32, "F32"}, {DType::bf16, "BF16"}, {DType::e4m3, "F8_E4M3"}, {DType::e5m2, "F8_E5M2"},
    {DType::i32, "I32"}, {DType::i64, "I64"},   {DType::u8, "U8"}};

template <typename... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  fail(ErrorKind::data, format, std::forward<Args>(args)...);
}

DType dtype_named(const std::string& array, const json& value) {
  if (!value.is_string())
    refuse("array \"{}\": expected dtype to be a string, found {}", array, value.type_name());
  for (const auto& [dtype, name] : kDTypes) {
    if (value == name) return dtype;
  }
  refuse("array \"{}\": dtype {} is not supported; supported: F32, BF16, F8_E4M3, F8_E5M2, I32, I64, U8",
         array, value.dump());
}

std::uint64_t natural(const std::string& array, const char* field, const json& value) {
  const bool valid =
      value.is_number_unsigned() &&
      value.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (!valid)
    refuse("array \"{}\": expected an integer in [0, 2^63) in {}, found {}", array, field, value.dump());
  return value.get<std::uint64_t>();
}

const json& list(const std::string& array, const char* field, const json& value) {
  if (!value.is_array())
    refuse("array \"{}\": expected {} to be a list, found {}", array, field, value.type_name());
  return value;
}

SafetensorsEntry parse_entry(const std::string& name, const json& value) {
  if (!value.is_object()) refuse("array \"{}\": expected an object, found {}", name, value.type_name());
  const bool complete = value.size() == 3 && value.contains("dtype") && value.contains("shape") &&
                        value.contains("data_offsets");
  if (!complete) refuse("array \"{}\": expected exactly the keys dtype, shape and data_offsets", name);
  SafetensorsEntry entry{name, dtype_named(name, value["dtype"]), {}, 0, 0};
  std::vector<std::int64_t> extents;
  for (const json& extent : list(name, "shape", value["shape"]))
    extents.push_back(static_cast<std::int64_t>(natural(name, "shape", extent)));
  entry.shape = Shape(extents);
  const json& offsets = list(name, "data_offsets", value["data_offsets"]);
  if (offsets.size() != 2) refuse("array \"{}\": expected 2 data_offsets, found {}", name, offsets.size());
  entry.begin = natural(name, "data_offsets", offsets[0]);
  entry.end = natural(name, "data_offsets", offsets[1]);
  return entry;
}

std::map<std::string, std::string> parse_metadata(const json& value) {
  if (!value.is_object()) refuse("__metadata__: expected an object, found {}", value.type_name());
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string())
      refuse("__metadata__: expected \"{}\" to be a string, found {}", key, text.type_name());
    metadata[key] = text.get<std::string>();
  }
  return metadata;
}

/// The JSON object in `text`; unlike the parser's default, a key that occurs twice is an error.
json parse_object(std::string_view text) {
  if (text.empty() || text.front() != '{') refuse("the header does not begin with '{{'");
  // The parser takes a zero byte for the end of its input, and would not see what follows.
  if (text.find('\0') != std::string_view::npos) refuse("the header holds a zero byte");
  std::vector<std::set<std::string>> open_objects;
  const auto watch = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == json::parse_event_t::object_end) open_objects.pop_back();
    if (event == json::parse_event_t::key && !open_objects.back().insert(parsed.get<std::string>()).second) {
      refuse("the key {} occurs twice in the header", parsed.dump());
    }
    return true;
  };
  try {
    return json::parse(text, watch);
  } catch (const json::exception& error) {
    refuse("the header is not JSON: {}", error.what());
  }
}

/// Every byte of the data belongs to exactly one array. `entries` are sorted by offset.
void check_cover(const std::vector<SafetensorsEntry>& entries, std::uint64_t data_bytes) {
  std::uint64_t covered = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.begin != covered) {
      refuse("array \"{}\": its data begins at {}, but the data before it ends at {} ({})", entry.name,
             entry.begin, covered, entry.begin < covered ? "overlap" : "hole");
    }
    const std::uint64_t needed = safetensors_bytes(entry.dtype, entry.shape);
    if (entry.end < entry.begin || entry.end - entry.begin != needed) {
      refuse("array \"{}\": data_offsets [{}, {}] do not span the {} bytes of {}{}", entry.name, entry.begin,
             entry.end, needed, name_of(entry.dtype), to_string(entry.shape));
    }
    covered = entry.end;
  }
  if (covered != data_bytes)
    refuse("the arrays span {} bytes, but {} bytes follow the header", covered, data_bytes);
}

}  // namespace

std::uint64_t safetensors_bytes(DType dtype, const Shape& shape) {
  std::uint64_t bytes = size_of(dtype);
  for (const std::int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(extent), &bytes)) {
      refuse("the shape {} is negative or too large", to_string(shape));
    }
  }
  return bytes;
}

SafetensorsHeader parse_safetensors_header(std::string_view text, std::uint64_t data_bytes) {
  SafetensorsHeader header;
  const json object = parse_object(text);
  for (const auto& [name, value] : object.items()) {
    if (name == kMetadataKey) {
      header.metadata = parse_metadata(value);
    } else {
      header.entries.push_back(parse_entry(name, value));
    }
  }
  std::sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  check_cover(header.entries, data_bytes);
  return header;
}

std::uint64_t safetensors_header_length(std::span<const std::byte> first_bytes, std::uint64_t file_bytes) {
  if (first_bytes.size() < kSafetensorsLengthBytes)
    refuse("expected a header length of 8 bytes, but the file has {} bytes", first_bytes.size());
  std::uint64_t length = 0;
  std::memcpy(&length, first_bytes.data(), kSafetensorsLengthBytes);
  if (length > kMaxSafetensorsHeader || length > file_bytes - kSafetensorsLengthBytes) {
    refuse("a header of {} bytes does not fit: the file has {} bytes, and a header at most {}", length,
           file_bytes, kMaxSafetensorsHeader);
  }
  return length;
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::uint64_t& data_begin) {
  const std::uint64_t length = safetensors_header_length(file, file.size());
  data_begin = kSafetensorsLengthBytes + length;
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kSafetensorsLengthBytes, length);
  return parse_safetensors_header(text, file.size() - data_begin);
}

std::string format_safetensors_header(const SafetensorsHeader& header) {
  auto object = nlohmann::ordered_json::object();
  if (!header.metadata.empty()) object[kMetadataKey] = header.metadata;
  for (const SafetensorsEntry& entry : header.entries) {
    require(entry.name != kMetadataKey && !object.contains(entry.name),
            "safetensors: the array name \"{}\" is {}", entry.name,
            entry.name == kMetadataKey ? "reserved" : "given twice");
    const auto* dtype = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                     [&](const auto& d) { return d.first == entry.dtype; });
    object[entry.name] = {
        {"dtype", dtype->second}, {"shape", entry.shape}, {"data_offsets", {entry.begin, entry.end}}};
  }
  try {
    std::string text = object.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return text;
  } catch (const json::exception& error) {
    fail(ErrorKind::usage, "safetensors: a name or metadata is not UTF-8: {}", error.what());
  }
}

}  // namespace quaver
