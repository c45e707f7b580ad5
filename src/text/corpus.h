/// Text gathered from files, split into training and validation documents.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace quaver {

/// Byte tokens: ids 0..255 are bytes; kDocumentToken stands before every document, and so ends the one before
/// it.
constexpr std::int32_t kDocumentToken = 256;
constexpr std::int64_t kByteVocab = 257;

/// Section [data] of a run file.
struct DataConfig {
  std::string path;            ///< a folder (every file is a document) or a file (cut into pieces)
  double val_fraction = 0.05;  ///< share of documents held back for validation, in (0, 1)
  std::int64_t max_bytes = 0;  ///< stop gathering after that many bytes; 0: all
  std::int64_t piece_bytes =
      8192;                   ///< a file is cut at the first line end after that many bytes, or at twice that
  bool document_mask = true;  ///< attention does not cross document boundaries

  friend bool operator==(const DataConfig&, const DataConfig&) = default;
};

struct Document {
  std::string name;  ///< path relative to the folder, or "file@offset" for a piece
  std::string text;
};

struct Corpus {
  std::vector<Document> train, validation;
};

/// Documents of a file or folder in order of their relative paths, cut short after config.max_bytes. Symbolic
/// links inside a folder are not followed. Empty files are left out. Throws Error(data) when something cannot
/// be read or nothing is there.
std::vector<Document> gather_documents(const DataConfig& config);

/// Whether a document belongs to the validation split: a function of its bytes alone, so that equal documents
/// never land in different splits.
bool is_validation(const std::string& text, double val_fraction);

/// Gathers and splits. Throws Error(data) when a split holds fewer than context + 1 tokens.
Corpus load_corpus(const DataConfig& config, std::int64_t context);

}  // namespace quaver
