#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/files.h"
#include "cli/commands.h"
#include "cli/format.h"
#include "cli/options.h"
#include "text/bpe_trainer.h"
#include "text/token_data.h"
#include "text/tokenizer_json.h"

namespace quaver::cli {
namespace {

void add_train_tokenizer(CLI::App& tokenize, Command& chosen) {
  CLI::App* command = tokenize.add_subcommand("train", "Make a byte-level BPE vocabulary from text");
  auto arguments = std::make_shared<TrainTokenizerArguments>();
  command->add_option("paths", arguments->paths, "text: files, folders, patterns")
      ->required()
      ->type_name("PATH");
  command->add_option("--vocab", arguments->vocab, "ids, with bytes and special tokens")
      ->required()
      ->type_name("N");
  command->add_option("--output", arguments->output, "tokenizer.json to write")
      ->required()
      ->type_name("FILE");
  command->add_option("--pattern", arguments->pattern, "how text is cut: gpt2, llama3 or qwen")
      ->check(CLI::IsMember({"gpt2", "llama3", "qwen"}))
      ->capture_default_str();
  command->add_option("--special", arguments->special, "special tokens; they get the first ids")
      ->capture_default_str()
      ->allow_extra_args(false)
      ->type_name("TEXT");
  command->add_option("--text-field", arguments->text_field, "member of a JSONL line with the text")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return train_tokenizer(*arguments); }; });
}

}  // namespace

void add_tokenize(CLI::App& app, Command& chosen) {
  CLI::App* command = app.add_subcommand("tokenize", "Write token shards of a text; make a vocabulary");
  auto arguments = std::make_shared<TokenizeArguments>();
  CLI::Option* path =
      command->add_option("path", arguments->path, "text: a file, a folder, a pattern")->type_name("PATH");
  CLI::Option* tokenizer =
      command->add_option("--tokenizer", arguments->tokenizer, "\"bytes\", or a tokenizer's file or folder")
          ->type_name("T");
  CLI::Option* output =
      command->add_option("--output", arguments->output, "new folder for the shards")->type_name("DIR");
  command->add_option("--document-token", arguments->document_token, "the token before documents")
      ->capture_default_str()
      ->type_name("TEXT");
  command->add_option("--text-field", arguments->text_field, "member of a JSONL line with the text")
      ->capture_default_str()
      ->type_name("NAME");
  command->add_option("--val-fraction", arguments->val_fraction, "share of documents for val_*.bin")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str()
      ->type_name("F");
  command->add_option("--shard-tokens", arguments->shard_tokens, "a shard ends behind that many")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--json", arguments->json, "print the result as one JSON object");
  add_train_tokenizer(*command, chosen);
  command->callback([=, &chosen] {
    if (!command->get_subcommands().empty()) return;
    for (const CLI::Option* option : {path, tokenizer, output}) {
      if (option->count() == 0) throw CLI::RequiredError(option->get_name());
    }
    chosen = [=] { return tokenize(*arguments); };
  });
}

int tokenize(const TokenizeArguments& arguments) {
  DataConfig config;
  config.path = arguments.path;
  config.tokenizer = arguments.tokenizer;
  config.document_token = arguments.document_token;
  config.text_field = arguments.text_field;
  config.val_fraction = arguments.val_fraction;
  const WrittenShards written = write_token_shards(config, arguments.output, arguments.shard_tokens);
  if (arguments.json) {
    const nlohmann::ordered_json json = {{"documents", written.documents},
                                         {"bytes", written.bytes},
                                         {"train_tokens", written.train_tokens},
                                         {"val_tokens", written.validation_tokens},
                                         {"files", written.files}};
    fmt::print("{}\n", json.dump());
    return 0;
  }
  fmt::print("{} documents, {} of text: {} tokens for training, {} for validation, in {} files\n",
             written.documents, bytes(written.bytes), written.train_tokens, written.validation_tokens,
             written.files);
  fmt::print("train with  data.path={} data.tokenizer={}\n", arguments.output,
             names_tokenizer_file(arguments.tokenizer) ? arguments.output : arguments.tokenizer);
  return 0;
}

int train_tokenizer(const TrainTokenizerArguments& arguments) {
  const std::string& pattern = arguments.pattern;
  BpeTrainer trainer(pattern == "gpt2"   ? kGpt2Pattern
                     : pattern == "qwen" ? kQwenPattern
                                         : kCl100kPattern,
                     pattern == "qwen", arguments.special);
  std::int64_t read = 0;
  for (const std::string& path : arguments.paths) {
    DataConfig config;
    config.path = path;
    config.format = path.ends_with(".jsonl") ? DataFormat::jsonl : DataFormat::text;
    config.text_field = arguments.text_field;
    visit_documents(config, [&](const std::string&, std::string_view text) {
      trainer.add(text);
      read += static_cast<std::int64_t>(text.size());
    });
  }
  const BpeDefinition definition = trainer.train(arguments.vocab);
  write_file_atomically(arguments.output, to_tokenizer_json(definition));
  const auto size = static_cast<std::int64_t>(definition.tokens.size());
  if (arguments.json) {
    const nlohmann::ordered_json json = {
        {"vocab", size}, {"merges", definition.merges.size()}, {"bytes", read}};
    fmt::print("{}\n", json.dump());
    return 0;
  }
  fmt::print("{}: {} ids from {} of text\n", arguments.output, size, bytes(read));
  if (size < arguments.vocab) fmt::print("fewer than {}: no other pair occurs twice\n", arguments.vocab);
  return 0;
}

}  // namespace quaver::cli
