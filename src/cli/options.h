/// The program's arguments: what main.cpp and the files that add commands share.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace quaver::cli {

/// What the arguments ask for; returns the exit code.
using Command = std::function<int()>;

inline constexpr const char* kOverridesHelp = "section.key=value: replaces a value of the run file";

/// Adds `tokenize` and its subcommand `train` to `app`; the one that is given becomes `chosen`.
void add_tokenize(CLI::App& app, Command& chosen);

/// Adds `bench` and its subcommands to `app`; the one that is given becomes `chosen`.
void add_bench(CLI::App& app, Command& chosen);

/// Adds `sample` and `serve`.
void add_generation(CLI::App& app, Command& chosen);

/// Adds `export` and `import`.
void add_interop(CLI::App& app, Command& chosen);

}  // namespace quaver::cli
