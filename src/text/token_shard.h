/// Files of tokens: the shards of llm.c and modded-nanogpt, and nanoGPT's files without a header.
///
/// A header has 256 integers of 32 bits: a magic number, a version, the number of tokens, and zeros. Magic
/// 20240520 with version 1 is followed by tokens of 16 bits, 20240801 with version 7 by tokens of 32. All is
/// little-endian.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/files.h"

namespace quaver {

/// Whether the file begins with one of the magic numbers. False for what cannot be read.
bool has_shard_header(const std::string& path);

/// Where the tokens of a file are.
struct ShardLayout {
  std::int64_t offset = 0, tokens = 0;
  int width = 2;  ///< bytes of a token
};

/// The layout of a file with this content; `name` stands for it in messages. Throws Error(data) when version
/// or size do not fit.
ShardLayout parse_shard(std::span<const std::byte> content, const std::string& name);

/// Writes tokens to a file as they come: with a header, which `finish` completes, or without one. Errors are
/// of kind failure.
class TokenWriter {
 public:
  /// A shard of that width (2 or 4) at path + ".tmp" until it is finished.
  TokenWriter(const std::string& path, int width);
  /// A file without a header and without a name, which ends with this object and its mappings, in the folder
  /// for temporary files.
  static TokenWriter temporary(int width);
  ~TokenWriter();
  TokenWriter(TokenWriter&& other) noexcept;
  TokenWriter& operator=(TokenWriter&&) = delete;

  void append(std::span<const std::int32_t> tokens);
  std::int64_t tokens() const { return tokens_; }

  /// Writes what is held, the header, and gives the file its name.
  void finish();
  /// Writes what is held; returns a descriptor of the file, to be closed by the caller.
  int release();

 private:
  TokenWriter(FileHandle file, std::string path, int width, bool header);
  void flush();
  void write_at(std::int64_t offset, std::span<const std::byte> bytes);

  FileHandle file_;
  std::string path_;  // empty: temporary
  int width_;
  bool header_;
  std::vector<std::byte> held_;
  std::int64_t written_ = 0, tokens_ = 0;
};

/// Tokens a shard can hold: its header counts in 32 bits with a sign.
constexpr std::int64_t kMaxShardTokens = (std::int64_t{1} << 31) - 1;

}  // namespace quaver
