#include "base/glob.h"

#include <gtest/gtest.h>

#include <string>

#include "quaver/error.h"

namespace quaver {
namespace {

TEST(Glob, CoversTheWholeName) {
  EXPECT_TRUE(glob_matches("lm_head", "lm_head"));
  EXPECT_FALSE(glob_matches("lm_head", "lm_heads"));
  EXPECT_FALSE(glob_matches("lm_head", "lm_hea"));
  EXPECT_TRUE(glob_matches("", ""));
  EXPECT_FALSE(glob_matches("", "a"));
}

TEST(Glob, StarsTakeAnyCharactersDotsIncluded) {
  EXPECT_TRUE(glob_matches("*", ""));
  EXPECT_TRUE(glob_matches("blocks.*.down_proj", "blocks.0.mlp.down_proj"));
  EXPECT_TRUE(glob_matches("blocks.1*", "blocks.11.mlp.down_proj"));
  EXPECT_FALSE(glob_matches("blocks.1.*", "blocks.11.mlp.down_proj"));
  EXPECT_TRUE(glob_matches("*proj*", "q_proj"));
  EXPECT_FALSE(glob_matches("*.proj", "q_proj"));
}

TEST(Glob, QuestionMarksTakeOneCharacter) {
  EXPECT_TRUE(glob_matches("?_proj", "q_proj"));
  EXPECT_FALSE(glob_matches("?_proj", "_proj"));
  EXPECT_FALSE(glob_matches("?", "ab"));
}

TEST(Glob, BracesAreAlternatives) {
  for (const char* name : {"blocks.0.x", "blocks.11.x"}) EXPECT_TRUE(glob_matches("blocks.{0,11}.*", name));
  EXPECT_FALSE(glob_matches("blocks.{0,11}.*", "blocks.1.x"));
  EXPECT_TRUE(glob_matches("{q,k}_proj", "k_proj"));
  EXPECT_TRUE(glob_matches("a{,b}", "a"));
  EXPECT_TRUE(glob_matches("{lm_head,blocks.{0,1}.*}", "blocks.1.mlp"));
  EXPECT_FALSE(glob_matches("{lm_head,blocks.{0,1}.*}", "blocks.2.mlp"));
  EXPECT_TRUE(glob_matches("a,b", "a,b")) << "a comma outside braces is a comma";
}

TEST(Glob, BracesMustPair) {
  for (const char* pattern : {"{a", "a}", "{a,{b}", "}", "{", "{a}}"})
    EXPECT_THROW(glob_matches(pattern, "a"), Error);
  EXPECT_THROW(glob_matches(std::string(100'000, '{'), "a"), Error);
}

TEST(Glob, RepeatedStarsAndBracesStayLinear) {
  std::string stars, braces;
  for (int i = 0; i < 2000; ++i) stars += "*a", braces += "{a,a}";
  EXPECT_FALSE(glob_matches(stars, std::string(1000, 'a') + "b"));
  EXPECT_TRUE(glob_matches(braces, std::string(2000, 'a')));
}

}  // namespace
}  // namespace quaver
