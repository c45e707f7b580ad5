#include "text/batches.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "support/errors.h"
#include "text/token_shard.h"

namespace quaver {
namespace {

using Tokens = std::vector<std::int32_t>;

std::vector<Document> make_documents(int count) {
  std::vector<Document> documents;
  for (int i = 0; i < count; ++i) {
    documents.push_back(
        {fmt::format("{}", i), fmt::format("document {} ", i) + std::string(i * 7 % 30, '\xF0')});
  }
  return documents;
}

/// The documents as byte tokens, each a segment.
TokenStream stream_of(const std::vector<Document>& documents) {
  TokenStream stream;
  for (const Document& document : documents) {
    Tokens tokens = {kDocumentToken};
    for (const char byte : document.text) tokens.push_back(static_cast<unsigned char>(byte));
    TokenWriter writer = TokenWriter::temporary(2);
    writer.append(tokens);
    stream.append(MappedFile(writer.release(), document.name), 0, writer.tokens(), 2);
  }
  return stream;
}

TokenRules byte_rules(bool document_mask = true) {
  return rules_of(*load_tokenizer("bytes"), document_mask);
}

BatchSource make_source(const std::vector<Document>& documents, std::int64_t context, std::int64_t batch,
                        std::uint64_t seed, bool document_mask = true) {
  return BatchSource(stream_of(documents), byte_rules(document_mask), context, batch, seed);
}

Tokens window(const HostBatch& batch, const Tokens& values, std::int64_t sequence) {
  const auto begin = values.begin() + sequence * batch.length;
  return {begin, begin + batch.length};
}

/// The windows of an epoch, for batches of one sequence.
std::vector<Tokens> windows_of_epoch(const BatchSource& source, std::int64_t epoch) {
  std::vector<Tokens> windows;
  for (std::int64_t i = 0; i < source.windows(); ++i)
    windows.push_back(source.at(epoch * source.windows() + i).tokens);
  return windows;
}

void expect_equal(const HostBatch& a, const HostBatch& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.targets, b.targets);
  EXPECT_EQ(a.positions, b.positions);
  EXPECT_EQ(a.first_key, b.first_key);
}

TEST(BatchSource, HasTheAskedShape) {
  const BatchSource source = make_source(make_documents(20), 13, 3, 1);
  const HostBatch batch = source.at(5);
  EXPECT_EQ(batch.batch, 3);
  EXPECT_EQ(batch.length, 13);
  EXPECT_EQ(batch.target_count, 39);
  for (const Tokens* values : {&batch.tokens, &batch.targets, &batch.positions, &batch.first_key})
    EXPECT_EQ(values->size(), 39u);
  EXPECT_EQ(batch.target_bytes, 39 - std::count(batch.targets.begin(), batch.targets.end(), kDocumentToken));
}

TEST(BatchSource, ShowsEveryTokenOfEveryDocumentInAnEpoch) {
  const auto documents = make_documents(20);
  const BatchSource source = make_source(documents, 13, 1, 1);
  std::map<std::int32_t, std::int64_t> missing;
  for (const Document& document : documents) {
    ++missing[kDocumentToken];
    for (const char byte : document.text) ++missing[static_cast<unsigned char>(byte)];
  }
  for (const Tokens& tokens : windows_of_epoch(source, 0)) {
    for (const std::int32_t token : tokens) --missing[token];
  }
  std::int64_t repeated = 0;
  for (const auto& [token, count] : missing) {
    EXPECT_LE(count, 0) << "token " << token;
    repeated -= count;
  }
  // Only the last window, which continues at the start of the text, may show tokens twice.
  EXPECT_EQ(repeated, source.windows() * 13 - source.tokens());
  EXPECT_LT(repeated, 13);
}

TEST(BatchSource, TargetsAreTheNextTokens) {
  const BatchSource source = make_source(make_documents(20), 13, 4, 1);
  const HostBatch batch = source.at(2);
  for (std::int64_t sequence = 0; sequence < 4; ++sequence) {
    const Tokens tokens = window(batch, batch.tokens, sequence),
                 targets = window(batch, batch.targets, sequence);
    EXPECT_TRUE(std::equal(tokens.begin() + 1, tokens.end(), targets.begin()));
  }
}

TEST(BatchSource, TargetsContinueInTheNextWindowAndAtTheEndOfTheTextAtItsStart) {
  const std::vector<Document> documents{{"a", "abcd"}};  // 256 a b c d
  const BatchSource source = make_source(documents, 3, 1, 1);
  ASSERT_EQ(source.windows(), 2);
  std::vector<std::pair<Tokens, Tokens>> found;
  for (int i = 0; i < 2; ++i) found.emplace_back(source.at(i).tokens, source.at(i).targets);
  std::sort(found.begin(), found.end());
  EXPECT_EQ(found[0], std::pair(Tokens({'c', 'd', 256}), Tokens({'d', 256, 'a'})));
  EXPECT_EQ(found[1], std::pair(Tokens({256, 'a', 'b'}), Tokens({'a', 'b', 'c'})));
}

TEST(BatchSource, FirstKeyIsWhereTheDocumentBeginsInTheWindow) {
  const std::vector<Document> documents{{"a", "ab"}, {"b", "ab"}, {"c", "ab"}};  // 256 a b 256 a b 256 a b
  const BatchSource source = make_source(documents, 5, 1, 1);
  std::vector<std::pair<Tokens, Tokens>> found;
  for (int i = 0; i < 2; ++i) found.emplace_back(source.at(i).tokens, source.at(i).first_key);
  std::sort(found.begin(), found.end());
  EXPECT_EQ(found[0], std::pair(Tokens({'b', 256, 'a', 'b', 256}), Tokens({0, 1, 1, 1, 4})));
  EXPECT_EQ(found[1], std::pair(Tokens({256, 'a', 'b', 256, 'a'}), Tokens({0, 0, 0, 3, 3})));
  EXPECT_EQ(source.at(0).positions, Tokens({0, 1, 2, 3, 4}));
}

TEST(BatchSource, WithoutADocumentMaskFirstKeyIsZero) {
  const auto documents = make_documents(20);
  const HostBatch masked = make_source(documents, 13, 4, 1, true).at(3),
                  open = make_source(documents, 13, 4, 1, false).at(3);
  EXPECT_EQ(open.tokens, masked.tokens);
  EXPECT_NE(open.first_key, masked.first_key);
  EXPECT_EQ(open.first_key, Tokens(52, 0));
}

TEST(BatchSource, EpochsHoldTheSameWindowsInAnotherOrder) {
  const BatchSource source = make_source(make_documents(30), 13, 1, 1);
  auto first = windows_of_epoch(source, 0), second = windows_of_epoch(source, 1);
  EXPECT_NE(first, second);
  std::sort(first.begin(), first.end());
  std::sort(second.begin(), second.end());
  EXPECT_EQ(first, second);
}

TEST(BatchSource, IsAPureFunctionOfTheIndex) {
  const auto documents = make_documents(30);
  const BatchSource source = make_source(documents, 13, 3, 1);
  std::vector<HostBatch> forward;
  for (int i = 0; i < 40; ++i) forward.push_back(source.at(i));
  for (int i = 40; i-- > 0;) expect_equal(source.at(i), forward[i]);
  expect_equal(make_source(documents, 13, 3, 1).at(37), forward[37]);
}

TEST(BatchSource, GoesOnForever) {
  const BatchSource source = make_source(make_documents(3), 13, 3, 1);
  EXPECT_EQ(source.at(1'000'000'000).tokens.size(), 39u);
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { source.at(-1); }), "found -1"));
}

TEST(BatchSource, MicroBatchSizeDoesNotChangeTheOrderOfWindows) {
  const auto documents = make_documents(30);
  const BatchSource one = make_source(documents, 13, 1, 1), four = make_source(documents, 13, 4, 1);
  for (int i = 0; i < 60; ++i) {
    const HostBatch batch = four.at(i / 4);
    EXPECT_EQ(one.at(i).tokens, window(batch, batch.tokens, i % 4));
  }
}

TEST(BatchSource, SeedsGiveDifferentOrdersOfDocuments) {
  const auto documents = make_documents(30);
  auto a = windows_of_epoch(make_source(documents, 13, 1, 1), 0),
       b = windows_of_epoch(make_source(documents, 13, 1, 2), 0);
  std::sort(a.begin(), a.end());
  std::sort(b.begin(), b.end());
  EXPECT_NE(a, b);
}

TEST(BatchSource, RefusesTextShorterThanASequence) {
  const std::vector<Document> documents{{"a", "abc"}};
  EXPECT_EQ(make_source(documents, 3, 2, 1).at(0).batch, 2);
  error_message(ErrorKind::usage, [&] { make_source(documents, 4, 2, 1); });
  error_message(ErrorKind::usage, [&] { make_source(documents, 3, 0, 1); });
  error_message(ErrorKind::usage, [&] { make_source({}, 3, 2, 1); });
}

TEST(ValidationBatches, CoverEveryTargetOnceInOrder) {
  const auto documents = make_documents(17);
  Tokens expected;
  for (const Document& document : documents) {
    expected.push_back(kDocumentToken);
    for (const char byte : document.text) expected.push_back(static_cast<unsigned char>(byte));
  }
  for (const std::int64_t context : {1, 2, 13, 64}) {
    const ValidationBatches batches(stream_of(documents), byte_rules(), context, 3);
    Tokens targets;
    std::int64_t count = 0, bytes = 0;
    for (std::int64_t i = 0; i < batches.count(); ++i) {
      const HostBatch batch = batches.at(i);
      EXPECT_EQ(static_cast<std::int64_t>(batch.tokens.size()), batch.batch * context);
      std::copy_if(batch.targets.begin(), batch.targets.end(), std::back_inserter(targets),
                   [](auto t) { return t >= 0; });
      count += batch.target_count;
      bytes += batch.target_bytes;
    }
    EXPECT_EQ(targets, Tokens(expected.begin() + 1, expected.end()));
    EXPECT_EQ(count, static_cast<std::int64_t>(targets.size()));
    EXPECT_EQ(bytes, count - 16);  // the first of 17 document tokens is no target
  }
}

TEST(ValidationBatches, FillTheLastWindowWithoutTargets) {
  const std::vector<Document> documents{{"a", "abc"}, {"b", "d"}};  // 256 a b c 256 d
  const ValidationBatches batches(stream_of(documents), byte_rules(), 4, 3);
  ASSERT_EQ(batches.count(), 1);
  const HostBatch batch = batches.at(0);
  EXPECT_EQ(batch.batch, 2);
  EXPECT_EQ(batch.tokens, Tokens({256, 'a', 'b', 'c', 256, 'd', 256, 256}));
  EXPECT_EQ(batch.targets, Tokens({'a', 'b', 'c', 256, 'd', -1, -1, -1}));
  EXPECT_EQ(batch.positions, Tokens({0, 1, 2, 3, 0, 1, 2, 3}));
  EXPECT_EQ(batch.first_key, Tokens(8, 0));
  EXPECT_EQ(batch.target_count, 5);
  EXPECT_EQ(batch.target_bytes, 4);
  error_message(ErrorKind::usage, [&] { batches.at(1); });
}

TEST(ValidationBatches, SpreadOverTheWholeText) {
  const ValidationBatches batches(stream_of(make_documents(17)), byte_rules(), 2, 3);
  ASSERT_GT(batches.count(), 10);
  std::vector<std::int64_t> all(static_cast<std::size_t>(batches.count()));
  std::iota(all.begin(), all.end(), std::int64_t{0});
  EXPECT_EQ(batches.spread(0), all);
  EXPECT_EQ(batches.spread(batches.count() + 1), all);
  const std::int64_t half = batches.count() / 2;
  EXPECT_EQ(batches.spread(2), (std::vector<std::int64_t>{0, half}));
  EXPECT_EQ(batches.spread(1), (std::vector<std::int64_t>{0}));
}

TEST(BatchSource, CountsTheBytesOfTokensThatAreKnown) {
  const std::vector<Document> documents{{"a", "abcd"}};
  TokenRules rules = byte_rules();
  rules.token_bytes['b'] = 5;
  const BatchSource source(stream_of(documents), rules, 4, 1, 1);
  // The targets are a b c d and, in the window that begins at d, the document token and a b c.
  EXPECT_EQ(source.at(0).target_bytes + source.at(1).target_bytes, (1 + 5 + 1 + 1) + (1 + 5 + 1));
  rules.token_bytes.clear();
  EXPECT_EQ(BatchSource(stream_of(documents), rules, 4, 1, 1).at(0).target_bytes, 0);
}

TEST(BatchSource, RefusesTokensThatAreNoIds) {
  const std::vector<Document> documents{{"a", "abcd"}};
  TokenRules rules = byte_rules();
  rules.vocab = 256;
  const std::string message =
      error_message(ErrorKind::data, [&] { BatchSource(stream_of(documents), rules, 4, 1, 1).at(0); });
  EXPECT_TRUE(contains(message, "holds token 256, but ids are below 256")) << message;
}

}  // namespace
}  // namespace quaver
