#include "interop/byte_tokenizer.h"

#include <nlohmann/json.hpp>

#include "text/corpus.h"

namespace quaver {
namespace {

using nlohmann::ordered_json;

std::string utf8(std::uint32_t code) {
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

/// Byte-level BPE writes a byte as a printable character: most of Latin-1 as itself, the other bytes in order
/// from U+0100 on.
ordered_json byte_vocabulary() {
  ordered_json vocabulary = ordered_json::object();
  std::uint32_t next = 0x100;
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    vocabulary[utf8(printable ? byte : next++)] = byte;
  }
  return vocabulary;
}

}  // namespace

std::string byte_tokenizer_json() {
  const ordered_json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  const auto special = [](int type_id) {
    return ordered_json{{"SpecialToken", {{"id", kDocumentText}, {"type_id", type_id}}}};
  };
  const auto sequence = [](const char* id, int type_id) {
    return ordered_json{{"Sequence", {{"id", id}, {"type_id", type_id}}}};
  };
  ordered_json out;
  out["version"] = "1.0";
  out["truncation"] = nullptr;
  out["padding"] = nullptr;
  out["added_tokens"] = ordered_json::array({{{"id", kDocumentToken},
                                              {"content", kDocumentText},
                                              {"single_word", false},
                                              {"lstrip", false},
                                              {"rstrip", false},
                                              {"normalized", false},
                                              {"special", true}}});
  out["normalizer"] = nullptr;
  out["pre_tokenizer"] = byte_level;
  out["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", ordered_json::array({special(0), sequence("A", 0)})},
      {"pair", ordered_json::array({special(0), sequence("A", 0), special(1), sequence("B", 1)})},
      {"special_tokens",
       {{kDocumentText,
         {{"id", kDocumentText},
          {"ids", ordered_json::array({kDocumentToken})},
          {"tokens", ordered_json::array({kDocumentText})}}}}}};
  out["decoder"] = byte_level;
  out["model"] = {{"type", "BPE"},
                  {"dropout", nullptr},
                  {"unk_token", nullptr},
                  {"continuing_subword_prefix", nullptr},
                  {"end_of_word_suffix", nullptr},
                  {"fuse_unk", false},
                  {"byte_fallback", false},
                  {"vocab", byte_vocabulary()},
                  {"merges", ordered_json::array()}};
  return out.dump(2) + "\n";
}

std::string byte_tokenizer_config_json(std::int64_t context) {
  const ordered_json out = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                            {"bos_token", kDocumentText},
                            {"eos_token", kDocumentText},
                            {"clean_up_tokenization_spaces", false},
                            {"model_max_length", context}};
  return out.dump(2) + "\n";
}

}  // namespace quaver
