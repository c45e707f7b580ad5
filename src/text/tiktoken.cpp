#include "text/tiktoken.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/check.h"
#include "text/bpe_tokenizer.h"

namespace quaver {
namespace {

// A token is cut at each of its bytes below; the longest of the well-known files have 128 bytes.
constexpr std::size_t kLongestToken = 4096;

struct Line {
  std::string bytes;
  std::int32_t rank;
};

std::optional<std::string> from_base64(std::string_view text) {
  static constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  std::string bytes;
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::size_t digit = i < text.size() - padding ? kDigits.find(text[i]) : 0;
    if (digit == std::string_view::npos) return std::nullopt;
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    if (i % 4 != 3) continue;
    for (const int shift : {16, 8, 0}) bytes += static_cast<char>(bits >> shift);
    bits = 0;
  }
  bytes.resize(bytes.size() - padding);
  return bytes;
}

std::optional<Line> parse_line(std::string_view line) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  const std::size_t space = line.find(' ');
  if (space == std::string_view::npos) return std::nullopt;
  auto bytes = from_base64(line.substr(0, space));
  if (!bytes || bytes->empty() || bytes->size() > kLongestToken) return std::nullopt;
  const std::string_view number = line.substr(space + 1);
  std::int32_t rank = -1;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), rank);
  if (error != std::errc() || end != number.data() + number.size() || rank < 0 || rank >= kMaxVocab)
    return std::nullopt;
  return Line{std::move(*bytes), rank};
}

std::string_view first_line(std::string_view text) {
  return text.substr(0, text.find('\n'));
}

std::vector<std::string> parse_ranks(std::string_view content) {
  std::vector<std::string> tokens;
  const auto lines = static_cast<std::size_t>(std::count(content.begin(), content.end(), '\n')) + 1;
  for (std::size_t number = 1; !content.empty(); ++number) {
    const std::string_view text = first_line(content);
    content.remove_prefix(std::min(content.size(), text.size() + 1));
    if (text.empty() || text == "\r") continue;
    auto line = parse_line(text);
    if (!line) fail(ErrorKind::data, "line {}: expected a token in base64, a space, and a rank", number);
    const auto rank = static_cast<std::size_t>(line->rank);
    check_largest_id(line->rank, lines, "line", number);
    if (rank >= tokens.size()) tokens.resize(rank + 1);
    if (!tokens[rank].empty()) fail(ErrorKind::data, "line {}: the rank {} occurs twice", number, rank);
    tokens[rank] = std::move(line->bytes);
  }
  return tokens;
}

/// Every way to put a token together from two others. tiktoken always makes the neighbours one that have the
/// lowest rank together.
std::vector<BpeMerge> merges_of(const std::vector<std::string>& tokens) {
  std::unordered_map<std::string_view, std::int32_t> ids;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty()) continue;
    if (!ids.emplace(tokens[id], static_cast<std::int32_t>(id)).second)
      fail(ErrorKind::data, "the token of rank {} occurs twice", id);
  }
  std::vector<BpeMerge> merges;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view token = tokens[id];
    for (std::size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = ids.find(token.substr(0, cut)), right = ids.find(token.substr(cut));
      if (left != ids.end() && right != ids.end())
        merges.push_back({left->second, right->second, static_cast<std::int32_t>(id)});
    }
  }
  return merges;
}

std::vector<AddedToken> special_tokens(std::int32_t first, std::initializer_list<const char*> names) {
  std::vector<AddedToken> tokens;
  for (const char* name : names) tokens.push_back({first++, name, true, false});
  return tokens;
}

std::vector<AddedToken> llama3_tokens(std::int32_t first) {
  auto tokens = special_tokens(
      first, {"<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
              "<|reserved_special_token_1|>", "<|reserved_special_token_2|>", "<|reserved_special_token_3|>",
              "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"});
  for (int i = 5; i < 251; ++i) {
    const auto id = first + static_cast<std::int32_t>(tokens.size());
    tokens.push_back({id, fmt::format("<|reserved_special_token_{}|>", i), true, false});
  }
  return tokens;
}

/// Pattern and special tokens by the number of ids (the highest rank plus one).
std::pair<const char*, std::vector<AddedToken>> family_of(std::size_t size) {
  const auto end = static_cast<std::int32_t>(size);
  switch (size) {
    case 50256:  // r50k_base
      return {kGpt2Pattern, special_tokens(50256, {"<|endoftext|>"})};
    case 50281:  // p50k_base: its ranks leave out 50256
      return {kGpt2Pattern, special_tokens(50256, {"<|endoftext|>"})};
    case 100256: {  // cl100k_base
      auto tokens =
          special_tokens(100257, {"<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"});
      tokens.push_back({100276, "<|endofprompt|>", true, false});
      return {kCl100kPattern, tokens};
    }
    case 128000:  // Llama 3
      return {kCl100kPattern, llama3_tokens(end)};
    case 151643:  // Qwen
      return {kQwenPattern, special_tokens(end, {"<|endoftext|>", "<|im_start|>", "<|im_end|>"})};
    case 199998: {  // o200k_base
      auto tokens = special_tokens(199999, {"<|endoftext|>"});
      tokens.push_back({200018, "<|endofprompt|>", true, false});
      return {kO200kPattern, tokens};
    }
    default:
      return {kCl100kPattern, special_tokens(end, {"<|endoftext|>"})};
  }
}

}  // namespace

bool looks_like_tiktoken(const std::string& content) {
  return parse_line(first_line(content)).has_value();
}

std::shared_ptr<const Tokenizer> parse_tiktoken(const std::string& content,
                                                const std::string& document_token) {
  BpeDefinition definition;
  definition.tokens = parse_ranks(content);
  definition.merges = merges_of(definition.tokens);
  definition.whole_pieces = true;
  auto [pattern, special] = family_of(definition.tokens.size());
  for (const AddedToken& token : special) {
    const auto id = static_cast<std::size_t>(token.id);
    if (id < definition.tokens.size() && !definition.tokens[id].empty())
      fail(ErrorKind::data, "the rank {} is that of the special token {}", id, token.text);
  }
  definition.stages = {{pattern, false}};
  definition.added = std::move(special);
  const std::int32_t document = choose_document_token(definition.added, document_token);
  return make_bpe_tokenizer(std::move(definition), document);
}

}  // namespace quaver
