/// The commands of `quaver`: one file each. Each returns the exit code, prints results to stdout and progress
/// to stderr.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "generate/sampling.h"
#include "quaver/products.h"

namespace quaver::cli {

struct TrainArguments {
  std::string config;
  std::vector<std::string> overrides;
  bool strict_fp8 = false;
  bool json = false;
};
int train(const TrainArguments& arguments);

struct EvalArguments {
  std::string run;
  std::vector<std::string> overrides;
  std::string choices;     ///< a file of multiple-choice questions; empty: validation loss
  std::int64_t limit = 0;  ///< of questions; 0: all
  bool json = false;
};
int eval(const EvalArguments& arguments);

struct SampleArguments {
  std::string run;
  std::vector<std::string> overrides;
  std::vector<std::string> prompts;
  std::string prompt_file;
  std::int64_t tokens = 200;
  SamplingOptions sampling;
  std::uint64_t seed = 1;
  std::vector<std::string> stop;
  std::int64_t batch = 16;
  bool json = false;
};
int sample(const SampleArguments& arguments);

struct ServeArguments {
  std::string run;
  std::vector<std::string> overrides;
  std::string host = "127.0.0.1";
  int port = 8000;   ///< 0: any free one
  std::string name;  ///< of the model; empty: the folder's
  std::int64_t max_batch = 16, queue = 64;
  std::int64_t max_tokens = 0;  ///< 0: as many as model.context has room for
  std::int64_t max_body = 4 << 20;
  std::int64_t timeout = 300;  ///< seconds
  bool json = false;
};
/// Returns after SIGINT or SIGTERM.
int serve(const ServeArguments& arguments);

struct InspectArguments {
  std::string run;
  bool health = false;  ///< advice instead of the modules
  std::string what_if;  ///< alternatives instead of the modules
  bool json = false;
};
int inspect(const InspectArguments& arguments);

struct ProbeArguments {
  std::string run;
  std::vector<std::string> overrides;
  bool json = false;
};
int probe(const ProbeArguments& arguments);

struct VerifyArguments {
  std::string run;
  bool json = false;
};
/// 3 when something is damaged.
int verify(const VerifyArguments& arguments);

struct DoctorArguments {
  bool json = false;
};
int doctor(const DoctorArguments& arguments);

struct ExportArguments {
  std::string run, output;
  std::string dtype = "float32";
  std::uint64_t shard_bytes = std::uint64_t{5} << 30;
  bool json = false;
};
int export_model(const ExportArguments& arguments);

struct ImportArguments {
  std::string folder, output;
  std::vector<std::string> overrides;
  std::string gate_layout = "stock";
  std::string gate = "elementwise";
  std::vector<std::string> ignored_keys;
  bool json = false;
};
int import_model(const ImportArguments& arguments);

struct BenchStepArguments {
  std::string config;  ///< a run file, or a run folder
  std::vector<std::string> overrides;
  std::int64_t micro_batch = 0;  ///< 0: train.batch
  std::int64_t context = 0;      ///< 0: model.context
  std::int64_t steps = 5;
  bool json = false;
};
int bench_step(const BenchStepArguments& arguments);

struct BenchProfileArguments {
  std::string config;  ///< a run file, or a run folder
  std::vector<std::string> overrides;
  std::int64_t micro_batch = 0;  ///< 0: train.batch
  std::int64_t context = 0;      ///< 0: model.context
  std::int64_t steps = 5;
  bool json = false;
};
int bench_profile(const BenchProfileArguments& arguments);

struct BenchMemoryArguments {
  std::string config;  ///< a run file, or a run folder
  std::vector<std::string> overrides;
  std::int64_t micro_batch = 0;  ///< 0: train.batch
  std::int64_t context = 0;      ///< 0: model.context
  bool json = false;
};
int bench_memory(const BenchMemoryArguments& arguments);

struct BenchGenerateArguments {
  std::string config;  ///< a run file, or a run folder
  std::vector<std::string> overrides;
  std::int64_t cached = 128;
  std::int64_t tokens = 20;
  bool json = false;
};
int bench_generate(const BenchGenerateArguments& arguments);

/// Steps of several configurations, micro-batches and contexts, in one table.
struct BenchCrossoverArguments {
  std::vector<std::string> configs;  ///< run files or run folders
  std::vector<std::string> overrides;
  std::vector<std::int64_t> micro_batches{1, 4, 8, 12, 32}, contexts{512, 2048};
  std::int64_t steps = 5;
  bool json = false;
};
int bench_crossover(const BenchCrossoverArguments& arguments);

/// The products of a configuration's Linears.
struct BenchGemmArguments {
  std::string config;  ///< a run file, or a run folder
  std::vector<std::string> overrides;
  std::string backend;           ///< empty: the configuration's
  std::int64_t micro_batch = 0;  ///< 0: train.batch
  std::int64_t context = 0;      ///< 0: model.context
  std::int64_t square = 0;       ///< also products of square matrices of this size; 0: none
  bool json = false;
};
int bench_gemm(const BenchGemmArguments& arguments);

struct BenchKernelsArguments {
  std::string backend = "cpu";
  std::vector<std::int64_t> tokens;  ///< empty: as many as exceed the backend's caches
  std::string only;                  ///< operations whose name contains this
  int threads = 0;                   ///< of the host; 0: one, and all
  Products products = Products::exact;
  int rounds = 9;
  bool json = false;
};
int bench_kernels(const BenchKernelsArguments& arguments);

struct BenchTokenizeArguments {
  std::string tokenizer, text;
  int rounds = 5;
  bool json = false;
};
int bench_tokenize(const BenchTokenizeArguments& arguments);

struct TokenizeArguments {
  std::string path, output;
  std::string tokenizer;
  std::string document_token = "auto";
  std::string text_field = "text";
  double val_fraction = 0.05;
  std::int64_t shard_tokens = 100'000'000;
  bool json = false;
};
int tokenize(const TokenizeArguments& arguments);

struct TrainTokenizerArguments {
  std::vector<std::string> paths;
  std::string output;
  std::string pattern = "llama3";
  std::string text_field = "text";
  std::vector<std::string> special{"<|endoftext|>"};
  std::int64_t vocab = 0;
  bool json = false;
};
int train_tokenizer(const TrainTokenizerArguments& arguments);

/// The exit code of a run that a signal stopped and that saved its model.
constexpr int kStopped = 75;

}  // namespace quaver::cli
