#include "text/added_tokens.h"

namespace quaver {

AddedTokenFinder::AddedTokenFinder(const std::vector<AddedToken>& tokens) {
  for (const AddedToken& token : tokens) {
    if (token.text.empty()) continue;
    by_length_[token.text.size()].emplace(token.text, token.id);
    first_bytes_[static_cast<unsigned char>(token.text[0])] = true;
    if (token.text.size() == 1) {
      second_bytes_.fill(true);
    } else {
      second_bytes_[static_cast<unsigned char>(token.text[1])] = true;
    }
  }
}

AddedTokenFinder::Match AddedTokenFinder::find(std::string_view text) const {
  const Match none{text.size(), 0, 0};
  if (by_length_.empty()) return none;
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (!first_bytes_[static_cast<unsigned char>(text[at])]) continue;
    if (at + 1 < text.size() && !second_bytes_[static_cast<unsigned char>(text[at + 1])]) continue;
    const std::string_view rest = text.substr(at);
    for (const auto& [length, tokens] : by_length_) {
      if (length > rest.size()) continue;
      const auto found = tokens.find(rest.substr(0, length));
      if (found != tokens.end()) return {at, length, found->second};
    }
  }
  return none;
}

}  // namespace quaver
