#include "generate/text_stream.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "support/errors.h"

namespace quaver {
namespace {

struct Shown {
  std::string text;
  bool stopped = false;
};

/// Feeds `text` in pieces of `piece` bytes.
Shown show(const std::vector<std::string>& stops, const std::string& text, std::size_t piece) {
  TextStream stream(stops);
  Shown shown;
  for (std::size_t at = 0; at < text.size() && !stream.stopped(); at += piece)
    shown.text += stream.append(text.substr(at, piece));
  shown.text += stream.finish();
  shown.stopped = stream.stopped();
  return shown;
}

TEST(TextStream, StopsAcrossTheBordersOfTokens) {
  for (const std::size_t piece : {1, 2, 3, 5, 100}) {
    const Shown shown = show({"END", "\n\n"}, "one ENENDtwo", piece);
    EXPECT_EQ(shown.text, "one EN") << piece;
    EXPECT_TRUE(shown.stopped);
    EXPECT_EQ(show({"END"}, "one ENE", piece).text, "one ENE") << piece;
    EXPECT_FALSE(show({"END"}, "one ENE", piece).stopped);
    EXPECT_EQ(show({"bc", "abcd", "abc"}, "xabcd", piece).text, "x") << "the longest that ends first";
  }
}

TEST(TextStream, HoldsBackOnlyWhatMayBeAStop) {
  TextStream stream({"stop"});
  EXPECT_EQ(stream.append("a sto"), "a ");
  EXPECT_EQ(stream.append("r"), "stor");
  EXPECT_EQ(stream.append("sst"), "s");
  EXPECT_EQ(stream.append("op more"), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.append("x") + stream.finish(), "");
}

TEST(TextStream, NeverCutsACharacter) {
  const std::string text = "a\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80z";
  for (const std::vector<std::string>& stops : {std::vector<std::string>{}, {"\x82\xAC!"}}) {
    TextStream stream(stops);
    std::string all;
    for (const char byte : text) {
      const std::string shown = stream.append(std::string(1, byte));
      EXPECT_EQ(valid_utf8_prefix(shown), shown.size());
      all += shown;
    }
    EXPECT_EQ(all + stream.finish(), text);
  }
  EXPECT_EQ(show({"x"}, "a\xE2\x82", 1).text, "a\xE2\x82") << "the end of the text is not lost";
}

/// The definition, byte by byte: the text ends before the longest stop string that the first stopping byte completes.
Shown expected(const std::vector<std::string>& stops, const std::string& text) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops) {
      if (std::string_view(text).substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text, false};
}

TEST(TextStream, AgreesWithTheDefinitionOnRandomTexts) {
  const Random random(3, 0);
  std::uint64_t at = 0;
  const auto word = [&](std::uint64_t longest) {
    std::string letters(1 + random.below(at++, longest), 'a');
    for (char& letter : letters) letter = static_cast<char>('a' + random.below(at++, 2));
    return letters;
  };
  int stopped = 0;
  for (int i = 0; i < 2000; ++i) {
    std::vector<std::string> stops(1 + random.below(at++, 3));
    for (std::string& stop : stops) stop = word(6);
    const std::string text = word(20);
    const Shown want = expected(stops, text), found = show(stops, text, 1 + random.below(at++, 4));
    ASSERT_EQ(found.text, want.text) << text;
    ASSERT_EQ(found.stopped, want.stopped);
    stopped += want.stopped;
  }
  EXPECT_GT(stopped, 500);
  EXPECT_LT(stopped, 1900);
}

TEST(TextStream, RefusesAnEmptyStop) {
  error_message(ErrorKind::usage, [] { TextStream stream({"a", ""}); });
}

}  // namespace
}  // namespace quaver
