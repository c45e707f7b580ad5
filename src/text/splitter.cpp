#include "text/splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>

#include "base/check.h"
#include "text/utf8.h"

namespace quaver {
namespace {

// White_Space of Unicode. PCRE2's own \s also holds U+180E, which left White_Space with Unicode 6.3, but is
// three times as fast: texts without that character are cut with it.
constexpr std::string_view kExceptionalSpace = "\xE1\xA0\x8E";
constexpr const char* kSpaces =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{"
    "3000}";
constexpr const char* kOthers =
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-"
    "\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";

// PCRE2's own default: the well-known patterns need few steps, a hostile one ends here within a second.
constexpr std::uint32_t kMatchLimit = 10'000'000;
constexpr std::size_t kJitStackBytes = std::size_t{1} << 20;
constexpr std::size_t kLongestPattern = 64 * 1024;

/// The pattern with \s and \S spelt out.
std::string translate(const std::string& pattern) {
  std::string result;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's' || next == 'S') {
        const std::string set = next == 's' ? kSpaces : kOthers;
        result += in_class ? set : "[" + set + "]";
      } else {
        result += {c, next};
      }
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    result += c;
  }
  return result;
}

std::string message_of(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

std::shared_ptr<pcre2_code> compile(const std::string& text, const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE at = 0;
  const std::shared_ptr<pcre2_code> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at, nullptr),
      pcre2_code_free);
  if (!code) fail(ErrorKind::data, "the pattern {} cannot be used: {}", pattern, message_of(error));
  // Without just-in-time compilation (a processor it does not know) matching is slow, but the same.
  (void)pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

/// A pattern as it stands, and with Unicode's \s.
struct Codes {
  explicit Codes(const std::string& pattern) {
    if (pattern.size() > kLongestPattern)
      fail(ErrorKind::data, "a pattern of {} bytes; at most {} are allowed", pattern.size(), kLongestPattern);
    fast = compile(pattern, pattern);
    exact = compile(translate(pattern), pattern);
  }
  std::shared_ptr<pcre2_code> fast, exact;
};

bool is_jit_compiled(const pcre2_code* code) {
  std::size_t bytes = 0;
  return pcre2_pattern_info(code, PCRE2_INFO_JITSIZE, &bytes) == 0 && bytes > 0;
}

}  // namespace

const char* const kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char* const kCl100kPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const char* const kQwenPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const char* const kO200kPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

class Splitter::Stage {
 public:
  explicit Stage(const SplitStage& stage) : Stage(Codes(stage.pattern), stage.pattern, stage.drop_gaps) {}
  Stage(const Stage& other) : Stage(other.codes_, other.pattern_, other.drops_gaps) {}

  Range next_match(std::string_view text, std::size_t from) {
    while (from < text.size()) {
      const Range match = match_at(text, from);
      if (match.end > match.begin) return match;
      if (match.begin >= text.size()) break;
      from = match.begin + utf8_length(text.substr(match.begin));
    }
    return {text.size(), text.size()};
  }

  /// From now on, for texts with U+180E or without.
  void use(bool exact) {
    code_ = exact ? codes_.exact.get() : codes_.fast.get();
    jit_ = is_jit_compiled(code_);
  }

  const bool drops_gaps;

 private:
  Stage(Codes codes, const std::string& pattern, bool drop_gaps)
      : drops_gaps(drop_gaps),
        codes_(std::move(codes)),
        pattern_(pattern),
        context_(pcre2_match_context_create(nullptr), pcre2_match_context_free),
        stack_(pcre2_jit_stack_create(32 * 1024, kJitStackBytes, nullptr), pcre2_jit_stack_free),
        data_(pcre2_match_data_create_from_pattern(codes_.exact.get(), nullptr), pcre2_match_data_free) {
    if (!context_ || !data_) throw std::bad_alloc();
    pcre2_set_match_limit(context_.get(), kMatchLimit);
    if (stack_) pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
    use(false);
  }

  Range match_at(std::string_view text, std::size_t from) {
    const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    const int found = jit_ ? pcre2_jit_match(code_, subject, text.size(), from, PCRE2_NO_UTF_CHECK,
                                             data_.get(), context_.get())
                           : pcre2_match(code_, subject, text.size(), from, PCRE2_NO_UTF_CHECK, data_.get(),
                                         context_.get());
    if (found == PCRE2_ERROR_NOMATCH) return {text.size(), text.size()};
    if (found < 0) fail(ErrorKind::data, "the pattern {} fails: {}", pattern_, message_of(found));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data_.get());
    // \K in a lookaround can move the begin behind the end.
    if (range[0] < from || range[1] < range[0])
      fail(ErrorKind::data, "the pattern {} gives a match that ends before it begins", pattern_);
    return {range[0], range[1]};
  }

  Codes codes_;
  std::string pattern_;
  std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)> context_;
  std::unique_ptr<pcre2_jit_stack, void (*)(pcre2_jit_stack*)> stack_;
  std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> data_;
  const pcre2_code* code_ = nullptr;
  bool jit_ = false;
};

Splitter::Splitter(const std::vector<SplitStage>& stages) {
  for (const SplitStage& stage : stages) stages_.push_back(std::make_unique<Stage>(stage));
}

Splitter::Splitter(const Splitter& other) {
  for (const auto& stage : other.stages_) stages_.push_back(std::make_unique<Stage>(*stage));
}

Splitter::~Splitter() = default;

Splitter::Range Splitter::next_match(std::size_t stage, std::string_view text, std::size_t from) {
  return stages_[stage]->next_match(text, from);
}

void Splitter::prepare(std::string_view text) {
  const bool exact = text.find(kExceptionalSpace) != std::string_view::npos;
  for (const auto& stage : stages_) stage->use(exact);
}

bool Splitter::drops_gaps(std::size_t stage) const {
  return stages_[stage]->drops_gaps;
}

}  // namespace quaver
