"""Whole training steps: Quaver beside PyTorch (BF16 autocast), the same model, in alternation.

usage: pytorch_step.py --quaver PROGRAM --config RUN.toml [--micro-batch B] [--context T] [--rounds N] [--threads N] [--device cpu|cuda]
       [--variants eager,compiled,float8]

The model is written with torch.nn and scaled_dot_product_attention (softmax written out where PyTorch is older than 2.0),
AdamW (fused on a GPU), clipping, cross entropy; eager; compiled, where torch.compile exists; and "float8", compiled with every
nn.Linear replaced by torchao's with dynamic scales of whole tensors (the tied lm_head, no nn.Linear, stays in BF16). Each round runs `quaver bench step` and
each PyTorch variant as a process of its own, one after the other; what is compiled was compiled, and cached, before the first round. Prints
every measurement as it is made, then medians of tokens per second and the ratios.
Needs a Python (3.11 or later) with PyTorch; says so and ends with status 2 when there is none.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path


def train_steps(model_config, batch, length, threads, device, variant, steps):
    """Seconds of each training step of the PyTorch model; the first, which warms up, is left out."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(1)
    torch.set_num_threads(threads)
    width, heads, kv_heads = (model_config[key] for key in ("width", "heads", "kv_heads"))
    head_dim, ffn, vocab = (model_config[key] for key in ("head_dim", "ffn_width", "vocab"))
    gate_features = {"elementwise": heads * head_dim, "headwise": heads, "none": 0}[model_config.get("gate", "none")]

    class RmsNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(width))

        def forward(self, x):
            x = x.float()
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.gain

    def rotate(x, cosine, sine):
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)

    def attend(q, k, v, mask):
        if hasattr(F, "scaled_dot_product_attention"):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = (q @ k.transpose(-1, -2)) * head_dim**-0.5
        return torch.softmax(scores.masked_fill(mask, float("-inf")), dim=-1).to(v.dtype) @ v

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention_norm, self.mlp_norm = RmsNorm(), RmsNorm()
            self.sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim, gate_features]
            self.qkv = nn.Linear(width, sum(self.sizes), bias=False)
            self.out = nn.Linear(heads * head_dim, width, bias=False)
            self.gate_up = nn.Linear(width, 2 * ffn, bias=False)
            self.down = nn.Linear(ffn, width, bias=False)

        def forward(self, x, cosine, sine, mask):
            rows = x.shape[:2]
            q, k, v, gate = self.qkv(self.attention_norm(x)).split(self.sizes, dim=-1)
            q, k, v = (t.reshape(*rows, -1, head_dim).transpose(1, 2) for t in (q, k, v))
            q, k = rotate(q, cosine, sine).to(v.dtype), rotate(k, cosine, sine).to(v.dtype)
            k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
            o = attend(q, k, v, mask).transpose(1, 2)
            if gate_features:
                o = o * torch.sigmoid(gate).reshape(*rows, heads, -1)
            x = x + self.out(o.reshape(*rows, -1))
            gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
            return x + self.down(F.silu(gate) * up)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(vocab, width)
            self.blocks = nn.ModuleList(Block() for _ in range(model_config["layers"]))
            self.norm = RmsNorm()
            angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim))
            self.register_buffer("cosine", angles.cos())
            self.register_buffer("sine", angles.sin())
            self.register_buffer("mask", torch.ones(length, length, dtype=torch.bool).triu(1))

        def forward(self, tokens, targets):
            x = self.embedding(tokens)
            for block in self.blocks:
                x = block(x, self.cosine, self.sine, self.mask)
            logits = F.linear(self.norm(x), self.embedding.weight)
            return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    model = Model().to(device)
    if variant == "float8":
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        convert_to_float8_training(model, config=Float8LinearConfig.from_recipe_name("tensorwise"))
    fused = {"fused": True} if device == "cuda" else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, **fused)
    forward = model if variant == "eager" else torch.compile(model)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = []
    for _ in range(steps + 1):
        tokens = torch.randint(vocab, (batch, length + 1), device=device)
        wait()
        begin = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def child(arguments, variant, config, batch, length):
    """Tokens per second of one PyTorch variant in a process of its own."""
    command = [sys.executable, __file__, "--child", variant, "--config", arguments.config, "--quaver", arguments.quaver]
    command += ["--micro-batch", str(batch), "--context", str(length), "--threads", str(arguments.threads)]
    command += ["--device", arguments.device]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return batch * length / statistics.median(json.loads(output))


def quaver(arguments, batch, length):
    command = [arguments.quaver.resolve(), "bench", "step", arguments.config, f"threads={arguments.threads}", "--json"]
    command += [f"backend=\"{arguments.device}\"", f"products=\"{arguments.products}\""]
    command += ["--micro-batch", str(batch), "--context", str(length), "--steps", "3"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {f"quaver {name}": result[name]["tokens_per_s"] for name in ("fp8", "bf16")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quaver", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--context", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--products", choices=["exact", "fast"], default="exact", help="Quaver's on a CPU")
    parser.add_argument("--variants", default="eager,compiled", help="of PyTorch; separated by commas")
    parser.add_argument("--child", choices=["eager", "compiled", "float8"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    config = tomllib.loads(arguments.config.read_text())
    batch = arguments.micro_batch or config["train"]["batch"]
    length = arguments.context or config["model"]["context"]
    if arguments.child:
        print(json.dumps(train_steps(config["model"], batch, length, arguments.threads, arguments.device, arguments.child, 3)))
        return 0
    try:
        import torch
    except ImportError:
        print(f"pytorch_step: {sys.executable} has no PyTorch: nothing to compare with", file=sys.stderr)
        return 2
    variants = [name for name in arguments.variants.split(",") if name == "eager" or hasattr(torch, "compile")]
    for name in variants:
        if name == "eager":
            continue
        child(arguments, name, config, batch, length)
        print(f"{name}: compiled", flush=True)
    rates = {}
    for _ in range(arguments.rounds):
        measured = quaver(arguments, batch, length)
        measured |= {f"pytorch {name}": child(arguments, name, config, batch, length) for name in variants}
        for name, rate in measured.items():
            rates.setdefault(name, []).append(rate)
            print(f"{name:17} {rate:8.0f} tokens/s", flush=True)
    print(f"PyTorch {torch.__version__}, {arguments.device}, {arguments.threads} threads, micro-batch {batch} x {length}, {arguments.rounds} rounds")
    best = max(statistics.median(rates[f"pytorch {name}"]) for name in variants)
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"{name:17} {rate:8.0f} tokens/s  {rate / best:5.2f} x PyTorch's best")
    return 0


if __name__ == "__main__":
    sys.exit(main())
