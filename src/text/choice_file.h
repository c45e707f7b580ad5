/// Multiple-choice questions: llm.c's evaluation files (HellaSwag, MMLU), and JSON lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace quaver {

struct ChoiceQuestion {
  std::vector<std::int32_t> context;               ///< at least one token
  std::vector<std::vector<std::int32_t>> choices;  ///< at least two, each of at least one token
  std::size_t label = 0;                           ///< the right choice
};

/// A file of either form, by its first bytes. All tokens are below `vocab`. `tokenizer` is for text, and may be null for
/// llm.c's files, which hold tokens. Throws Error(data) naming file and question (from 0) or line.
std::vector<ChoiceQuestion> read_choice_file(const std::string& path, const Tokenizer* tokenizer,
                                             std::int64_t vocab);

/// The content of such a file; `name` stands for it in messages.
std::vector<ChoiceQuestion> parse_choices(std::string_view content, const std::string& name,
                                          const Tokenizer* tokenizer, std::int64_t vocab);

/// The content of llm.c's form; `name` stands for the file in messages.
std::vector<ChoiceQuestion> parse_choice_tokens(std::span<const std::byte> content, const std::string& name,
                                                std::int64_t vocab);

/// JSON lines: an object with `context`, `choices` (texts that follow it as they stand) and `label`; or HellaSwag's own
/// `ctx`, `endings` (a space is put before each) and `label`. The tokenizer's document token stands before the context.
std::vector<ChoiceQuestion> parse_choice_lines(std::string_view content, const std::string& name,
                                               const Tokenizer& tokenizer);

}  // namespace quaver
