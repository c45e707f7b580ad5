#include "text/token_data.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "base/files.h"
#include "support/errors.h"
#include "support/temporary_folder.h"
#include "text/bpe_trainer.h"
#include "text/token_shard.h"
#include "text/tokenizer_json.h"

namespace quaver {
namespace {

using Tokens = std::vector<std::int32_t>;

Tokens all_of(const TokenStream& stream) {
  Tokens tokens(static_cast<std::size_t>(stream.size()));
  stream.read(0, tokens);
  return tokens;
}

template <typename T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string shard(std::int32_t magic, std::int32_t version, std::int32_t count, const std::string& tokens) {
  std::vector<std::int32_t> header(256);
  header[0] = magic;
  header[1] = version;
  header[2] = count;
  return bytes_of(header) + tokens;
}

Tokens counted(std::int32_t begin, std::int32_t end) {
  Tokens tokens;
  for (std::int32_t token = begin; token < end; ++token) tokens.push_back(token);
  return tokens;
}

std::string narrow(const Tokens& tokens) {
  return bytes_of(std::vector<std::uint16_t>(tokens.begin(), tokens.end()));
}

class TokenDataTest : public testing::Test {
 protected:
  TokenDataTest() { config.path = folder.path("data"); }

  void write_texts() {
    for (int i = 0; i < 60; ++i)
      folder.write(fmt::format("data/{:02}.txt", i), fmt::format("this is the document {}\n", i % 40));
    config.val_fraction = 0.3;
  }
  TokenData load(std::int64_t context = 16, std::int64_t vocab = 100000) const {
    return load_token_data(config, context, vocab);
  }
  std::string refusal(ErrorKind kind, std::int64_t vocab = 100000) const {
    return error_message(kind, [&] { load(16, vocab); });
  }
  /// A tokenizer trained on the texts.
  std::string train_tokenizer() const {
    BpeTrainer trainer(kGpt2Pattern, false, {"<|endoftext|>"});
    visit_documents(config, [&](const std::string&, std::string_view text) { trainer.add(text); });
    return folder.write("tokenizer.json", to_tokenizer_json(trainer.train(270)));
  }

  TemporaryFolder folder;
  DataConfig config;
};

TEST_F(TokenDataTest, PutsEveryDocumentIntoOneSplit) {
  write_texts();
  const TokenData data = load();
  EXPECT_EQ(data.train.segments() + data.validation.segments(), 60);
  EXPECT_GT(data.train.size(), data.validation.size());
  EXPECT_EQ(all_of(load().train), all_of(data.train));
  const Tokens tokens = all_of(data.train);
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), kDocumentToken), data.train.segments());
  EXPECT_EQ(tokens[0], kDocumentToken);
}

TEST_F(TokenDataTest, RefusesASplitThatIsTooSmall) {
  write_texts();
  const std::string message = error_message(ErrorKind::data, [&] { load(100000); });
  EXPECT_TRUE(contains(message, "the training split has ")) << message;
  EXPECT_TRUE(contains(message, "model.context + 1 = 100001")) << message;
  config.val_fraction = 1e-9;
  EXPECT_TRUE(contains(refusal(ErrorKind::data), "the validation split has 0 tokens"));
  config.val_fraction = 1 - 1e-9;
  EXPECT_TRUE(contains(refusal(ErrorKind::data), "the training split has 0 tokens"));
  config.path = folder.write("00.txt", std::string(500, 'x'));
  EXPECT_TRUE(contains(refusal(ErrorKind::data), "data.piece_bytes"));
}

TEST_F(TokenDataTest, TheVocabularyMustFit) {
  write_texts();
  const std::string message = refusal(ErrorKind::usage, 256);
  EXPECT_TRUE(contains(message, "model.vocab: expected at least 257")) << message;
  config.tokenizer = train_tokenizer();
  EXPECT_TRUE(contains(refusal(ErrorKind::usage, 269), "model.vocab=270"));
  EXPECT_EQ(load(16, 270).rules.vocab, 270);
}

TEST_F(TokenDataTest, BpeTokensStandForTheBytesOfTheText) {
  write_texts();
  const TokenData bytes = load();
  config.tokenizer = train_tokenizer();
  const TokenData data = load();
  EXPECT_LT(data.train.size(), bytes.train.size() / 2);
  EXPECT_EQ(data.train.segments(), bytes.train.segments());
  const auto count_bytes = [](const TokenData& of) {
    std::int64_t sum = 0;
    for (const std::int32_t token : all_of(of.train))
      sum += of.rules.token_bytes[static_cast<std::size_t>(token)];
    return sum;
  };
  EXPECT_EQ(count_bytes(data), count_bytes(bytes));
}

TEST_F(TokenDataTest, ReadsShardsOfBothWidthsAndWithoutHeader) {
  folder.write("data/a_train_0.bin", shard(20240520, 1, 300, narrow(counted(0, 300))));
  folder.write("data/a_train_1.bin", shard(20240801, 7, 200, bytes_of(counted(70000, 70200))));
  folder.write("data/b.bin", narrow(counted(1000, 1100)));
  folder.write("data/x_val_0.bin", narrow(counted(5, 105)));
  folder.write("data/README.md", "not data");
  config.tokenizer = "none";
  EXPECT_TRUE(contains(refusal(ErrorKind::usage), "data.document_mask"));
  config.document_mask = false;
  const TokenData data = load();
  Tokens expected = counted(0, 300);
  for (const auto& [begin, end] : {std::pair(70000, 70200), std::pair(1000, 1100)}) {
    const Tokens more = counted(begin, end);
    expected.insert(expected.end(), more.begin(), more.end());
  }
  EXPECT_EQ(all_of(data.train), expected);
  EXPECT_EQ(all_of(data.validation), counted(5, 105));
  EXPECT_TRUE(data.rules.token_bytes.empty());
  Tokens across(10);
  data.train.read(295, across);
  EXPECT_EQ(across, (Tokens{295, 296, 297, 298, 299, 70000, 70001, 70002, 70003, 70004}));
}

TEST_F(TokenDataTest, ShardsWithoutValidationFilesGiveTheirEnd) {
  config.path = folder.write("train.bin", narrow(counted(0, 1000)));
  config.tokenizer = "none";
  config.document_mask = false;
  config.val_fraction = 0.25;
  EXPECT_EQ(all_of(load().train), counted(0, 750));
  EXPECT_EQ(all_of(load().validation), counted(750, 1000));
}

TEST_F(TokenDataTest, DamagedShardsAreRefused) {
  const std::string whole = shard(20240520, 1, 300, narrow(counted(0, 300)));
  const auto refused = [](const std::string& content) {
    return error_message(ErrorKind::data, [&] { parse_shard(std::as_bytes(std::span(content)), "x.bin"); });
  };
  for (std::size_t size = 4; size < whole.size(); size += 13)
    EXPECT_TRUE(contains(refused(whole.substr(0, size)), "x.bin: a shard of ")) << size;
  EXPECT_TRUE(contains(refused(whole + "xx"), "found 1626"));
  EXPECT_TRUE(contains(refused(shard(20240520, 2, 0, "")), "version 2, expected 1"));
  EXPECT_TRUE(contains(refused(shard(20240801, 7, -1, "")), "a shard of -1 tokens"));
  EXPECT_TRUE(contains(refused("odd"), "expected tokens of 2 bytes"));
  EXPECT_TRUE(contains(refused(""), "found 0 bytes"));
}

TEST_F(TokenDataTest, WrittenShardsTrainLikeTheText) {
  write_texts();
  config.tokenizer = train_tokenizer();
  const TokenData text = load();
  const std::string shards = folder.path("shards");
  const WrittenShards written = write_token_shards(config, shards, 100);
  EXPECT_EQ(written.documents, 60);
  EXPECT_EQ(written.train_tokens, text.train.size());
  EXPECT_EQ(written.validation_tokens, text.validation.size());
  EXPECT_GT(written.files, 3);
  DataConfig sharded = config;
  sharded.path = shards;
  sharded.tokenizer = shards;  // the copy
  const TokenData data = load_token_data(sharded, 16, 270);
  EXPECT_EQ(all_of(data.train), all_of(text.train));
  EXPECT_EQ(all_of(data.validation), all_of(text.validation));
  EXPECT_EQ(data.rules.token_bytes, text.rules.token_bytes);
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { write_token_shards(config, shards, 100); }),
                       "is not empty"));
}

TEST(TokenWriter, AnUnfinishedShardLeavesNothing) {
  const TemporaryFolder folder;
  {
    TokenWriter writer(folder.path("a.bin"), 4);
    writer.append(counted(0, 10));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(BpeTrainer, MergesTheMostFrequentPairAndOfEqualOnesTheFirst) {
  BpeTrainer trainer(kGpt2Pattern, false, {"<|endoftext|>"});
  for (int i = 0; i < 3; ++i) trainer.add("zy ab");
  trainer.add("ab<|endoftext|>q");
  const BpeDefinition definition = trainer.train(300);
  ASSERT_GE(definition.merges.size(), 3u);
  EXPECT_EQ(definition.tokens[257], "ab");
  EXPECT_EQ(definition.tokens[258], "zy");
  EXPECT_EQ(definition.tokens[259], " ab");
  EXPECT_EQ(definition.tokens.size(), 260u);  // no other pair occurs twice
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { trainer.train(256); }), "[257, "));
}

TEST(BpeTrainer, TheOrderOfDocumentsDoesNotMatter) {
  std::vector<std::string> texts;
  for (int i = 0; i < 50; ++i) texts.push_back(fmt::format("number {} and {} of some words\n", i, i * i));
  const auto trained = [&] {
    BpeTrainer trainer(kCl100kPattern, true, {"<|endoftext|>"});
    for (const std::string& text : texts) trainer.add(text);
    return to_tokenizer_json(trainer.train(400));
  };
  const std::string first = trained();
  std::reverse(texts.begin(), texts.end());
  EXPECT_EQ(trained(), first);
}

}  // namespace
}  // namespace quaver
