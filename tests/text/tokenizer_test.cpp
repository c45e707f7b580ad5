#include "text/tokenizer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/random.h"
#include "support/errors.h"
#include "support/temporary_folder.h"
#include "text/byte_level.h"
#include "text/corpus.h"
#include "text/tokenizer_json.h"
#include "text/utf8.h"

namespace quaver {
namespace {

using nlohmann::json;
using Tokens = std::vector<std::int32_t>;

/// <|endoftext|> is 0, byte b is 1 + b, then th, the, " the" (257 to 259).
BpeDefinition small_definition() {
  BpeDefinition definition;
  definition.tokens.emplace_back();
  for (int byte = 0; byte < 256; ++byte) definition.tokens.emplace_back(1, static_cast<char>(byte));
  for (const char* token : {"th", "the", " the"}) definition.tokens.emplace_back(token);
  definition.merges = {{1 + 't', 1 + 'h', 257}, {257, 1 + 'e', 258}, {1 + ' ', 258, 259}};
  definition.stages = {{kGpt2Pattern, false}};
  definition.added = {{0, "<|endoftext|>", true, false}};
  return definition;
}

json small_json() {
  return json::parse(to_tokenizer_json(small_definition()));
}

std::shared_ptr<const Tokenizer> parse(const json& file) {
  return parse_tokenizer(file.dump(), "t.json");
}

std::string refusal(const json& file) {
  return error_message(ErrorKind::data, [&] { parse(file); });
}

TEST(ByteTokenizer, TokensAreBytes) {
  const auto tokenizer = load_tokenizer("bytes");
  EXPECT_EQ(tokenizer->vocab(), kByteVocab);
  EXPECT_EQ(tokenizer->document_token(), kDocumentToken);
  EXPECT_EQ(tokenizer->encode("a\xff"), (Tokens{'a', 255}));
  EXPECT_EQ(tokenizer->decode(Tokens{'a', 256, 255}), "a\xff");
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { tokenizer->bytes_of(257); }), "[0, 257)"));
}

TEST(TokenizerJson, WritesWhatItReads) {
  const auto tokenizer = parse(small_json());
  EXPECT_EQ(tokenizer->vocab(), 260);
  EXPECT_EQ(tokenizer->document_token(), 0);
  EXPECT_EQ(tokenizer->encode("the the<|endoftext|> th"), (Tokens{258, 259, 0, 1 + ' ', 257}));
  EXPECT_EQ(tokenizer->decode(Tokens{258, 0, 259}), "the the");
}

TEST(TokenizerJson, BothSpellingsOfMergesAreRead) {
  json file = small_json();
  file["model"]["merges"] = {"t h", "th e", "\xC4\xA0 the"};
  EXPECT_EQ(parse(file)->encode(" the"), Tokens{259});
}

TEST(TokenizerJson, TheOrderOfMergesDecides) {
  json file = small_json();
  file["model"]["merges"] = {"h e", "t h", "th e"};
  file["model"]["vocab"]["he"] = 260;
  EXPECT_EQ(parse(file)->encode("the"), (Tokens{1 + 't', 260}));
  file["model"]["ignore_merges"] = true;
  EXPECT_EQ(parse(file)->encode("the"), Tokens{258});
}

TEST(TokenizerJson, BytesThatAreNotUtf8AreEncodedOneByOne) {
  const auto tokenizer = parse(small_json());
  EXPECT_EQ(tokenizer->encode("the\xC3 the\xF0\x9F"), (Tokens{258, 1 + 0xC3, 259, 1 + 0xF0, 1 + 0x9F}));
  const Random random(3, 1);
  std::string bytes;
  for (std::uint64_t i = 0; i < 5000; ++i) bytes += static_cast<char>(random.below(i, 256));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(bytes)), bytes);
}

TEST(TokenizerJson, LongPiecesTakeNoLongerThanTheyMust) {
  const std::string text(2'000'000, 't');  // minutes, were it quadratic
  EXPECT_EQ(parse(small_json())->encode(text).size(), text.size());
}

TEST(TokenizerJson, AnEncoderRemembersNothingThatMatters) {
  const auto tokenizer = parse(small_json());
  const auto encoder = tokenizer->make_encoder();
  for (const std::string text : {"the the the", "th", "", "the", "the the the"}) {
    Tokens tokens;
    encoder->encode(text, tokens);
    EXPECT_EQ(tokens, tokenizer->encode(text)) << text;
  }
}

TEST(TokenizerJson, WhatWouldEncodeOtherwiseIsRefused) {
  const auto changed = [](const char* pointer, const json& value) {
    json file = small_json();
    file[json::json_pointer(pointer)] = value;
    return refusal(file);
  };
  EXPECT_TRUE(contains(changed("/model/type", "Unigram"), "t.json: model.type = \"Unigram\": not supported"));
  EXPECT_TRUE(contains(changed("/model/dropout", 0.1), "model.dropout = 0.1"));
  EXPECT_TRUE(contains(changed("/model/unk_token", "<unk>"), "model.unk_token"));
  EXPECT_TRUE(contains(changed("/model/byte_fallback", true), "model.byte_fallback"));
  EXPECT_TRUE(contains(changed("/normalizer", {{"type", "NFKC"}}), "normalizer.type = \"NFKC\""));
  EXPECT_TRUE(contains(changed("/pre_tokenizer/add_prefix_space", true), "add_prefix_space"));
  EXPECT_TRUE(contains(changed("/pre_tokenizer", nullptr), "pre_tokenizer: expected"));
  EXPECT_TRUE(contains(changed("/pre_tokenizer", {{"type", "Whitespace"}}), "\"Whitespace\""));
  EXPECT_TRUE(contains(changed("/added_tokens/0/lstrip", true), "asks for lstrip"));
  EXPECT_TRUE(contains(changed("/added_tokens/0/id", 5), "but 0 in model.vocab"));
  EXPECT_TRUE(contains(changed("/added_tokens/0/id", -1), "expected an id in [0, "));
  EXPECT_TRUE(contains(changed("/added_tokens", json::array()), "no token to put before documents"));
  EXPECT_TRUE(contains(changed("/model/vocab/th", 258), "two tokens have the id 258"));
  EXPECT_TRUE(contains(changed("/model/vocab/th", 1LL << 40), "expected an id in [0, "));
  EXPECT_TRUE(contains(changed("/model/merges/0", "t  h"), "model.merges[0]: expected"));
  EXPECT_TRUE(contains(changed("/model/merges/0", json::array({"t", "q"})), "tq is not in the vocabulary"));
}

TEST(TokenizerJson, EveryByteNeedsAToken) {
  json file = small_json();
  file["model"]["vocab"].erase("A");
  EXPECT_TRUE(contains(refusal(file), "no token for byte 0x41 (A)"));
}

TEST(TokenizerJson, HostilePatternsEndInAnError) {
  json file = small_json();
  const auto with_pattern = [&](const char* pattern) {
    file["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}},
          {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
    return error_message(ErrorKind::data, [&] { parse(file)->encode(std::string(60, 'a') + "!"); });
  };
  EXPECT_TRUE(contains(with_pattern("(a"), "cannot be used"));
  EXPECT_TRUE(contains(with_pattern("(a|aa|a?)+$"), "fails"));
}

TEST(TokenizerFiles, EveryTruncationIsRefused) {
  const std::string content = to_tokenizer_json(small_definition());
  for (std::size_t size = 0; size + 2 < content.size(); size += 7) {
    error_message(ErrorKind::data, [&] { parse_tokenizer(content.substr(0, size), "t.json"); });
  }
}

std::string small_tiktoken() {
  // The 256 bytes in order, then "th" and "the".
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string content;
  for (int byte = 0; byte < 256; ++byte)
    content += fmt::format("{}{}== {}\n", kDigits[byte >> 2], kDigits[(byte & 3) << 4], byte);
  return content + "dGg= 256\ndGhl 257\n";
}

TEST(Tiktoken, RanksAreIds) {
  const auto tokenizer = parse_tokenizer(small_tiktoken(), "t.tiktoken");
  EXPECT_EQ(tokenizer->vocab(), 259);
  EXPECT_EQ(tokenizer->document_token(), 258);
  EXPECT_EQ(tokenizer->encode("the tho<|endoftext|>"), (Tokens{257, ' ', 256, 'o', 258}));
}

TEST(Tiktoken, DamagedLinesAreNamed) {
  const auto refused = [](const std::string& content) {
    return error_message(ErrorKind::data, [&] { parse_tokenizer(content, "t.tiktoken"); });
  };
  EXPECT_TRUE(contains(refused(small_tiktoken() + "dGg 300\n"), "t.tiktoken: line 259: expected a token"));
  EXPECT_TRUE(contains(refused(small_tiktoken() + "dG== 9999999999\n"), "line 259"));
  EXPECT_TRUE(contains(refused(small_tiktoken() + "dGho 5\n"), "the rank 5 occurs twice"));
  EXPECT_TRUE(contains(refused(small_tiktoken() + "dGg= 258\n"), "the token of rank 258 occurs twice"));
  // Found by fuzzing: 12 bytes that asked for 4.7 million tokens.
  EXPECT_TRUE(
      contains(refused("AA== 4677095"), "line 1: the id 4677095 among 1 tokens leaves more than 65536"));
}

TEST(TokenizerFiles, AFolderIsItsTokenizerJson) {
  const TemporaryFolder folder;
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { load_tokenizer(folder.path()); }),
                       "holds neither tokenizer.json"));
  folder.write("tokenizer.json", to_tokenizer_json(small_definition()));
  EXPECT_EQ(load_tokenizer(folder.path())->vocab(), 260);
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { load_tokenizer(folder.path(), "<pad>"); }),
                       "<|endoftext|>"));
  EXPECT_TRUE(contains(
      error_message(ErrorKind::data, [&] { load_tokenizer(folder.write("x", "no tokenizer")); }), "neither"));
}

TEST(Utf8, KnowsWhatIsValid) {
  EXPECT_EQ(valid_utf8_prefix("plain ascii text, long \xC3\xA9 "
                              "\xE2\x82\xAC \xF0\x9F\x98\x80"),
            34u);
  for (const std::string bad :
       {"\x80", "\xC0\xAF", "\xC1\x80", "\xE0\x80\x80", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xC3", "\xE2\x82"}) {
    EXPECT_EQ(valid_utf8_prefix("a" + bad), 1u) << bad;
  }
}

TEST(Utf8, EveryCodePointIsReadAsItWasWritten) {
  for (char32_t point = 0; point < 0x110000; ++point) {
    if (point >= 0xD800 && point < 0xE000) continue;
    std::string text;
    append_utf8(text, point);
    ASSERT_EQ(utf8_length(text + "x"), text.size());
    ASSERT_EQ(first_code_point(text), point);
    for (std::size_t cut = 1; cut < text.size(); ++cut) ASSERT_TRUE(is_partial_utf8(text.substr(0, cut)));
  }
}

TEST(Utf8, AStreamShowsWholeCharacters) {
  const std::string text =
      "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xFFz"
      "\xE2\x82";
  Utf8Stream stream;
  std::vector<std::string> shown;
  for (const char byte : text) shown.push_back(stream.append(std::string_view(&byte, 1)));
  EXPECT_EQ(shown, (std::vector<std::string>{"a", "", "\xC3\xA9", "", "", "\xE2\x82\xAC", "", "", "",
                                             "\xF0\x9F\x98\x80", "\xFF", "z", "", ""}));
  EXPECT_EQ(stream.finish(), "\xE2\x82");
  EXPECT_EQ(stream.finish(), "");
}

TEST(ByteLevel, MapsEveryByteAndBack) {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes += static_cast<char>(byte);
  EXPECT_EQ(from_byte_level(to_byte_level(bytes)), bytes);
  EXPECT_EQ(to_byte_level(" \n"), "\xC4\xA0\xC4\x8A");
  EXPECT_FALSE(from_byte_level("\xE4\xB8\xAD"));
}

}  // namespace
}  // namespace quaver
