#include "text/sentencepiece.h"

#include <sentencepiece_processor.h>

#include <charconv>
#include <utility>

#include "base/check.h"

namespace quaver {
namespace {

using sentencepiece::SentencePieceProcessor;

std::string bytes_of_piece(const SentencePieceProcessor& model, int id) {
  std::string piece = model.IdToPiece(id);
  if (model.IsByte(id)) {  // "<0x0A>"
    int byte = 0;
    std::from_chars(piece.data() + 3, piece.data() + 5, byte, 16);
    return std::string(1, static_cast<char>(byte));
  }
  if (model.IsControl(id) || model.IsUnknown(id) || model.IsUnused(id)) return "";
  static const std::string mark = "\xE2\x96\x81";
  for (std::size_t at = piece.find(mark); at != std::string::npos; at = piece.find(mark, at))
    piece.replace(at, mark.size(), " ");
  return piece;
}

std::vector<std::string> tokens_of(const SentencePieceProcessor& model) {
  std::vector<std::string> tokens;
  for (int id = 0; id < model.GetPieceSize(); ++id) tokens.push_back(bytes_of_piece(model, id));
  return tokens;
}

std::int32_t document_token_of(const SentencePieceProcessor& model, const std::string& wanted) {
  std::vector<AddedToken> control;
  for (int id = 0; id < model.GetPieceSize(); ++id) {
    if (model.IsControl(id)) control.push_back({id, model.IdToPiece(id), true, false});
  }
  return choose_document_token(control, wanted);
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(std::unique_ptr<SentencePieceProcessor> model, std::int32_t document_token)
      : Tokenizer(tokens_of(*model), {}, document_token), model_(std::move(model)) {}

  std::unique_ptr<TextEncoder> make_encoder() const override {
    struct Encoder : TextEncoder {
      explicit Encoder(const SentencePieceProcessor& m) : model(m) {}
      void encode(std::string_view text, std::vector<std::int32_t>& tokens) override {
        std::vector<int> ids;
        const auto status = model.Encode({text.data(), text.size()}, &ids);
        if (!status.ok()) fail(ErrorKind::data, "SentencePiece: {}", status.ToString());
        tokens.insert(tokens.end(), ids.begin(), ids.end());
      }
      const SentencePieceProcessor& model;
    };
    return std::make_unique<Encoder>(*model_);
  }

 private:
  std::unique_ptr<SentencePieceProcessor> model_;
};

}  // namespace

std::shared_ptr<const Tokenizer> parse_sentencepiece(const std::string& content,
                                                     const std::string& document_token) {
  auto model = std::make_unique<SentencePieceProcessor>();
  const auto status = model->LoadFromSerializedProto({content.data(), content.size()});
  if (!status.ok())
    fail(ErrorKind::data,
         "neither a tokenizer.json, a tiktoken file nor a SentencePiece model (as which: {})",
         status.ToString());
  const std::int32_t document = document_token_of(*model, document_token);
  return std::make_shared<SentencePieceTokenizer>(std::move(model), document);
}

}  // namespace quaver
