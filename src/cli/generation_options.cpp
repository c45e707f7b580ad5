#include <CLI/CLI.hpp>
#include <memory>

#include "cli/commands.h"
#include "cli/options.h"

namespace quaver::cli {
namespace {

constexpr const char* kModelHelp = "run folder, checkpoint, or Hugging Face folder";

void add_sampling(CLI::App& command, SamplingOptions& sampling) {
  command.add_option("--temperature", sampling.temperature, "0: always the likeliest token")
      ->check(CLI::Range(0.0f, 100.0f))
      ->capture_default_str()
      ->type_name("T");
  command.add_option("--top-k", sampling.top_k, "draw among the K likeliest tokens; 0: among all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->type_name("K");
  command.add_option("--top-p", sampling.top_p, "draw among the likeliest tokens of this total probability")
      ->capture_default_str()
      ->type_name("P");
  command
      .add_option("--repetition-penalty", sampling.repetition_penalty,
                  "makes tokens that the text holds less likely; 1: no change")
      ->capture_default_str()
      ->type_name("R");
}

void add_sample(CLI::App& app, Command& chosen) {
  CLI::App* command = app.add_subcommand("sample", "Let a trained model continue texts");
  auto arguments = std::make_shared<SampleArguments>();
  command->add_option("run", arguments->run, kModelHelp)->required()->type_name("RUN");
  command->add_option("overrides", arguments->overrides, kOverridesHelp)->type_name("");
  command->add_option("--prompt", arguments->prompts, "text to continue; may be repeated")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->type_name("TEXT");
  command
      ->add_option("--prompt-file", arguments->prompt_file,
                   "a prompt a line; of a .jsonl file a string or an object with \"prompt\"")
      ->type_name("FILE");
  command->add_option("--tokens", arguments->tokens, "most tokens to draw")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->type_name("N");
  add_sampling(*command, arguments->sampling);
  command->add_option("--seed", arguments->seed, "of the random numbers, of every prompt")
      ->capture_default_str()
      ->type_name("S");
  command->add_option("--stop", arguments->stop, "ends the text before this; may be repeated")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->type_name("TEXT");
  command->add_option("--batch", arguments->batch, "prompts that are continued at once")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->type_name("N");
  command->add_flag("--json", arguments->json, "print one JSON object a prompt");
  command->callback([=, &chosen] { chosen = [=] { return sample(*arguments); }; });
}

void add_serve(CLI::App& app, Command& chosen) {
  CLI::App* command = app.add_subcommand("serve", "Answer completion requests over HTTP (OpenAI form)");
  auto arguments = std::make_shared<ServeArguments>();
  const auto option = [&](const char* name, auto& value, const char* help, const char* type) {
    command->add_option(name, value, help)->capture_default_str()->type_name(type);
  };
  command->add_option("run", arguments->run, kModelHelp)->required()->type_name("RUN");
  command->add_option("overrides", arguments->overrides, kOverridesHelp)->type_name("");
  option("--host", arguments->host, "address to listen on", "ADDRESS");
  option("--port", arguments->port, "0: any free one", "N");
  option("--name", arguments->name, "of the model, for clients; default: the folder's", "NAME");
  option("--max-batch", arguments->max_batch, "texts that are continued at once", "N");
  option("--queue", arguments->queue, "requests that may wait for a place; more get 503", "N");
  option("--max-tokens", arguments->max_tokens,
         "most a request may ask for; 0: what the context has room for", "N");
  option("--max-body", arguments->max_body, "bytes of a request", "N");
  option("--timeout", arguments->timeout, "seconds after which a request ends with what it has", "N");
  command->add_flag("--json", arguments->json, "print the address as one JSON object");
  command->callback([=, &chosen] { chosen = [=] { return serve(*arguments); }; });
}

}  // namespace

void add_generation(CLI::App& app, Command& chosen) {
  add_sample(app, chosen);
  add_serve(app, chosen);
}

}  // namespace quaver::cli
