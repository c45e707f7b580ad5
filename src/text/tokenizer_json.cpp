#include "text/tokenizer_json.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "text/byte_level.h"

namespace quaver {
namespace {

using nlohmann::json;
using Ids = std::unordered_map<std::string, std::int32_t>;

/// The member, or null when it is missing: the format writes both.
const json& member(const json& object, const char* key) {
  static const json null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

std::string text_of(const json& object, const char* key, const std::string& where) {
  const json& value = member(object, key);
  if (!value.is_string())
    fail(ErrorKind::data, "{}.{}: expected a string, found {}", where, key, value.type_name());
  return value.get<std::string>();
}

bool flag_of(const json& object, const char* key, bool if_missing, const std::string& where) {
  const json& value = member(object, key);
  if (value.is_null()) return if_missing;
  if (!value.is_boolean())
    fail(ErrorKind::data, "{}.{}: expected true or false, found {}", where, key, value.type_name());
  return value.get<bool>();
}

std::int32_t id_of(const json& value, const std::string& where) {
  if (!value.is_number_integer())
    fail(ErrorKind::data, "{}: expected an id, found {}", where, value.type_name());
  const auto id = value.get<std::int64_t>();
  if (id < 0 || id >= kMaxVocab)
    fail(ErrorKind::data, "{}: expected an id in [0, {}), found {}", where, kMaxVocab, id);
  return static_cast<std::int32_t>(id);
}

void refuse(const char* key, const json& value, const char* where = "model") {
  fail(ErrorKind::data, "{}.{} = {}: not supported; only byte-level BPE is", where, key,
       value.dump(-1, ' ', true, json::error_handler_t::replace).substr(0, 80));
}

void require_plain_model(const json& model) {
  const json& type = member(model, "type");
  if (!type.is_null() && type != "BPE") refuse("type", type);
  for (const char* key : {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
    const json& value = member(model, key);
    if (!value.is_null() && value != "" && value != 0.0) refuse(key, value);
  }
  if (flag_of(model, "byte_fallback", false, "model")) refuse("byte_fallback", true);
}

Ids read_vocab(const json& model, BpeDefinition& definition) {
  const json& vocab = member(model, "vocab");
  if (!vocab.is_object() || vocab.empty())
    fail(ErrorKind::data, "model.vocab: expected an object of tokens, found {}", vocab.type_name());
  Ids ids;
  std::int32_t largest = 0;
  for (const auto& [text, value] : vocab.items()) {
    const std::int32_t id = id_of(value, "model.vocab");
    largest = std::max(largest, id);
    ids.emplace(text, id);
  }
  check_largest_id(largest, ids.size(), "model.vocab");
  definition.tokens.resize(static_cast<std::size_t>(largest) + 1);
  definition.other_tokens.resize(definition.tokens.size());
  std::vector<bool> taken(definition.tokens.size());
  for (const auto& [text, id] : ids) {
    const auto i = static_cast<std::size_t>(id);
    if (taken[i]) fail(ErrorKind::data, "model.vocab: two tokens have the id {}", id);
    taken[i] = true;
    if (auto bytes = from_byte_level(text)) {
      definition.tokens[i] = std::move(*bytes);
    } else {
      definition.other_tokens[i] = text;
    }
  }
  return ids;
}

/// The two parts of a merge: "left right", or ["left", "right"].
std::pair<std::string, std::string> merge_parts(const json& merge, std::size_t index) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  if (merge.is_string()) {
    const auto text = merge.get<std::string>();
    const std::size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos)
      return {text.substr(0, space), text.substr(space + 1)};
  }
  fail(ErrorKind::data, "model.merges[{}]: expected \"left right\" or [\"left\", \"right\"]", index);
}

void read_merges(const json& model, const Ids& ids, BpeDefinition& definition) {
  const json& merges = member(model, "merges");
  if (!merges.is_array())
    fail(ErrorKind::data, "model.merges: expected an array, found {}", merges.type_name());
  const auto find = [&](const std::string& token, std::size_t index) {
    const auto found = ids.find(token);
    if (found == ids.end())
      fail(ErrorKind::data, "model.merges[{}]: {} is not in the vocabulary", index, token);
    return found->second;
  };
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const auto [left, right] = merge_parts(merges[i], i);
    definition.merges.push_back({find(left, i), find(right, i), find(left + right, i)});
  }
}

void read_normalizer(const json& normalizer, BpeDefinition& definition) {
  if (normalizer.is_null()) return;
  if (!normalizer.is_object())
    fail(ErrorKind::data, "normalizer: expected an object, found {}", normalizer.type_name());
  const json& type = member(normalizer, "type");
  if (type == "NFC") {
    definition.nfc = true;
  } else if (type == "Sequence" && member(normalizer, "normalizers").is_array()) {
    for (const json& inner : normalizer["normalizers"]) {
      if (member(inner, "type") == "Sequence") refuse("normalizers", inner, "normalizer");
      read_normalizer(inner, definition);
    }
  } else {
    refuse("type", type, "normalizer");
  }
}

std::string split_pattern(const json& split) {
  const json& pattern = member(split, "pattern");
  if (pattern.is_object() && member(pattern, "Regex").is_string()) return pattern["Regex"].get<std::string>();
  if (!pattern.is_object() || !member(pattern, "String").is_string())
    fail(ErrorKind::data, "pre_tokenizer.pattern: expected {{\"Regex\": ...}} or {{\"String\": ...}}");
  const auto text = pattern["String"].get<std::string>();
  if (text.find("\\E") != std::string::npos) refuse("pattern", pattern, "pre_tokenizer");
  return "\\Q" + text + "\\E";
}

/// Adds the stages of one pre-tokenizer that is no sequence; returns whether it is ByteLevel.
bool read_pre_tokenizer(const json& step, BpeDefinition& definition) {
  const std::string where = "pre_tokenizer", type = text_of(step, "type", where);
  if (type == "ByteLevel") {
    if (flag_of(step, "add_prefix_space", true, where)) refuse("add_prefix_space", true, "pre_tokenizer");
    if (flag_of(step, "use_regex", true, where)) definition.stages.push_back({kGpt2Pattern, false});
    return true;
  }
  if (type == "Digits") {
    const bool single = flag_of(step, "individual_digits", false, where);
    definition.stages.push_back({single ? "\\p{N}" : "\\p{N}+", false});
    return false;
  }
  if (type != "Split") refuse("type", type, "pre_tokenizer");
  const std::string behavior = text_of(step, "behavior", where);
  const bool invert = flag_of(step, "invert", false, where);
  // Isolated keeps matches and the text between them as pieces, so that inverting it changes nothing.
  if (behavior != "Isolated" && !(behavior == "Removed" && invert))
    refuse("behavior", behavior, "pre_tokenizer");
  definition.stages.push_back({split_pattern(step), behavior == "Removed"});
  return false;
}

void read_pre_tokenizers(const json& pre_tokenizer, BpeDefinition& definition) {
  if (!pre_tokenizer.is_object())
    fail(ErrorKind::data, "pre_tokenizer: expected an object with ByteLevel, found {}",
         pre_tokenizer.type_name());
  bool byte_level = false;
  if (member(pre_tokenizer, "type") == "Sequence") {
    const json& steps = member(pre_tokenizer, "pretokenizers");
    if (!steps.is_array())
      fail(ErrorKind::data, "pre_tokenizer.pretokenizers: expected an array, found {}", steps.type_name());
    for (const json& step : steps) {
      // ByteLevel maps bytes to characters, which patterns behind it would meet.
      if (byte_level) fail(ErrorKind::data, "pre_tokenizer: ByteLevel is supported as the last step only");
      byte_level = read_pre_tokenizer(step, definition);
    }
  } else {
    byte_level = read_pre_tokenizer(pre_tokenizer, definition);
  }
  if (!byte_level) fail(ErrorKind::data, "pre_tokenizer: has no ByteLevel; only byte-level BPE is supported");
}

AddedToken read_added_token(const json& token, const Ids& ids) {
  const std::string where = "added_tokens";
  AddedToken added{id_of(member(token, "id"), where + ".id"), text_of(token, "content", where),
                   flag_of(token, "special", false, where), false};
  if (added.text.empty()) fail(ErrorKind::data, "added_tokens: token {} has no content", added.id);
  added.normalized = flag_of(token, "normalized", !added.special, where);
  for (const char* key : {"single_word", "lstrip", "rstrip"}) {
    if (flag_of(token, key, false, where))
      fail(ErrorKind::data, "added_tokens: {} asks for {}, which is not supported", added.text, key);
  }
  const auto known = ids.find(added.text);
  if (known != ids.end() && known->second != added.id)
    fail(ErrorKind::data, "added_tokens: {} has the id {}, but {} in model.vocab", added.text, added.id,
         known->second);
  return added;
}

void read_added_tokens(const json& tokens, const Ids& ids, BpeDefinition& definition) {
  if (tokens.is_null()) return;
  if (!tokens.is_array())
    fail(ErrorKind::data, "added_tokens: expected an array, found {}", tokens.type_name());
  for (const json& token : tokens) {
    AddedToken added = read_added_token(token, ids);
    const auto id = static_cast<std::size_t>(added.id);
    const bool in_vocab = ids.contains(added.text);
    if (!in_vocab && id < definition.tokens.size() &&
        !(definition.tokens[id].empty() && definition.other_tokens[id].empty()))
      fail(ErrorKind::data, "added_tokens: {} has the id {} of another token", added.text, added.id);
    definition.added.push_back(std::move(added));
  }
}

json parse_json(const std::string& content) try {
  return json::parse(content);
} catch (const json::exception& error) {
  fail(ErrorKind::data, "not JSON: {}", error.what());
}

json added_token_json(const AddedToken& token) {
  return {{"id", token.id},  {"content", token.text},          {"single_word", false},    {"lstrip", false},
          {"rstrip", false}, {"normalized", token.normalized}, {"special", token.special}};
}

}  // namespace

std::shared_ptr<const Tokenizer> parse_tokenizer_json(const std::string& content,
                                                      const std::string& document_token) {
  const json file = parse_json(content);
  const json& model = member(file, "model");
  if (!model.is_object()) fail(ErrorKind::data, "model: expected an object, found {}", model.type_name());
  require_plain_model(model);
  BpeDefinition definition;
  const Ids ids = read_vocab(model, definition);
  read_merges(model, ids, definition);
  definition.whole_pieces = flag_of(model, "ignore_merges", false, "model");
  read_normalizer(member(file, "normalizer"), definition);
  read_pre_tokenizers(member(file, "pre_tokenizer"), definition);
  read_added_tokens(member(file, "added_tokens"), ids, definition);
  const std::int32_t document = choose_document_token(definition.added, document_token);
  return make_bpe_tokenizer(std::move(definition), document);
}

std::string to_tokenizer_json(const BpeDefinition& definition) {
  json vocab = json::object(), merges = json::array(), added = json::array();
  std::vector<std::string> names(definition.tokens.size());
  for (std::size_t id = 0; id < names.size(); ++id) names[id] = to_byte_level(definition.tokens[id]);
  for (const AddedToken& token : definition.added) {
    names.at(static_cast<std::size_t>(token.id)) = token.text;
    added.push_back(added_token_json(token));
  }
  for (std::size_t id = 0; id < names.size(); ++id) vocab[names[id]] = id;
  for (const BpeMerge& merge : definition.merges) {
    merges.push_back(json::array(
        {names.at(static_cast<std::size_t>(merge.left)), names.at(static_cast<std::size_t>(merge.right))}));
  }
  const bool split = !definition.stages.empty() && definition.stages[0].pattern != kGpt2Pattern;
  const json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", !split}};
  json pre_tokenizer = byte_level;
  if (split) {
    const json step = {{"type", "Split"},
                       {"pattern", {{"Regex", definition.stages[0].pattern}}},
                       {"behavior", "Isolated"},
                       {"invert", false}};
    pre_tokenizer = {{"type", "Sequence"}, {"pretokenizers", json::array({step, byte_level})}};
  }
  json file = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}, {"added_tokens", added}};
  file["normalizer"] = definition.nfc ? json{{"type", "NFC"}} : json();
  file["pre_tokenizer"] = pre_tokenizer;
  file["post_processor"] = nullptr;
  file["decoder"] = {
      {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  file["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"ignore_merges", definition.whole_pieces}};
  file["model"]["vocab"] = std::move(vocab);
  file["model"]["merges"] = std::move(merges);
  return file.dump(1) + "\n";
}

}  // namespace quaver
