"""Runs of small random models, and the programs that export, import and compute them."""

import subprocess

import hf_oracle

SMALL = ["model.context=32", "model.layers=2", "model.init_std=0.2", "threads=1"]
LLAMA = ["model.gate=none", "model.qk_norm=none"]
QWEN3 = ["model.gate=none", "model.qk_norm=pre_rope"]
GATED = ["model.qk_norm=pre_rope"]
TOKENS = [256, 72, 101, 108, 108, 111, 44, 32, 195, 164, 0, 255, 10]

# (expected class, overrides, exact: whether an import gives back the very parameters of the run)
VARIANTS = [
    ("LlamaForCausalLM", LLAMA, True),
    ("LlamaForCausalLM", LLAMA + ["model.qkv=separate", "model.tie_embeddings=false", "model.kv_heads=4"], True),
    ("LlamaForCausalLM", LLAMA + ["model.qkv_bias=true", "model.out_bias=true", "model.mlp_bias=true"], True),
    ("LlamaForCausalLM", LLAMA + ["model.gate_up=packed"], True),
    ("LlamaForCausalLM", LLAMA + ["model.qkv_bias=true", "model.out_bias=true", "model.mlp_bias=true", "model.gate_up=packed"], True),
    ("LlamaForCausalLM", LLAMA + ["model.qkv_bias=true"], False),
    ("LlamaForCausalLM", LLAMA + ["model.head_dim=12", "model.mlp=geglu", "model.rope_theta=500", "model.norm_epsilon=1e-3"], True),
    ("Qwen3ForCausalLM", QWEN3, True),
    ("Qwen3ForCausalLM", QWEN3 + ["model.out_bias=true", "model.heads=6", "model.kv_heads=1"], False),
    ("Qwen3ForCausalLM", QWEN3 + ["model.tie_embeddings=false", "model.qkv=separate", "model.vocab=300"], True),
    ("Qwen3_5ForCausalLM", GATED + ["model.gate=elementwise"], True),
    ("Qwen3_5ForCausalLM", GATED + ["model.gate=headwise"], True),
    ("Qwen3_5ForCausalLM", GATED + ["model.gate=elementwise", "model.gate_activation=sigmoid2"], False),
    ("Qwen3_5ForCausalLM", GATED + ["model.gate=headwise", "model.gate_bias=true", "model.qkv=separate"], False),
    ("Qwen3_5ForCausalLM", GATED + ["model.gate=elementwise", "model.gate_bias=true", "model.qkv_bias=true", "model.out_bias=true"], True),
    ("Qwen3_5ForCausalLM", GATED + ["model.gate=elementwise", "model.rope_fraction=0.5", "model.tie_embeddings=false"], True),
]


class Programs:
    """`quaver` and oracle_run_logits, writing into one folder."""

    def __init__(self, quaver, run_logits, config, folder):
        self.quaver, self.run_logits, self.config, self.folder = quaver, run_logits, config, folder

    def make_run(self, name, overrides):
        run = self.folder / name
        subprocess.run([self.run_logits, "make", self.config, *SMALL, *overrides, f"run.dir={run}"], check=True)
        return run

    def export(self, run, name, *options):
        out = self.folder / name
        subprocess.run([self.quaver, "export", run, "--output", out, *options], check=True, stdout=subprocess.DEVNULL)
        return out

    def import_(self, source, name, *options):
        run = self.folder / name
        subprocess.run([self.quaver, "import", source, "--output", run, *options], check=True, stdout=subprocess.DEVNULL)
        return run

    def logits(self, run):
        out = self.folder / "logits.safetensors"
        subprocess.run([self.run_logits, "logits", run, out, *map(str, TOKENS)], check=True)
        return hf_oracle.read_arrays(out)["logits"]
