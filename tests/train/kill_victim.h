/// The run that kill_test.cpp interrupts.
#pragma once

#include <string>

#include "train/run_config.h"

namespace quaver {

inline RunConfig victim_config(const std::string& folder, const std::string& run) {
  RunConfig config;
  config.model.width = 32;
  config.model.layers = 1;
  config.model.heads = 4;
  config.model.kv_heads = 2;
  config.model.head_dim = 8;
  config.model.ffn_width = 64;
  config.model.context = 32;
  config.data.path = folder + "/text";
  config.data.val_fraction = 0.2;
  config.threads = 1;
  config.train.steps = 12;
  config.train.lr = 3e-3f;
  config.train.warmup_steps = 2;
  config.train.batch = 1;
  config.train.accumulation = 2;
  config.train.save_every = 1;
  config.train.eval_every = 0;
  config.train.eval_batches = 1;
  config.fp8.amax_history_len = 4;
  config.run.dir = run;
  return config;
}

}  // namespace quaver
