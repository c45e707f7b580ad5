"""Logits, losses and every gradient of small models in FP32, against the float64 model in model_oracle.py.

All gates x qk_norms x norms x packings, then every other field of the model's configuration at least once.

Bound: Quaver computes in FP32, whose rounding error is 6e-8 an operation; a gradient here is the end of some 60 dependent
operations over sums of up to 64 terms, measured against the tensor's largest element. 1e-4 leaves room for that (1e-5 is seen)
and is far below what a wrong formula gives.

usage: model_gradients_test.py DUMP_PROGRAM CONFIG BACKEND
"""

import itertools
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import jax
import numpy as np
from safetensors import safe_open

import model_oracle

RELATIVE_BOUND = 1e-4
SMALL = ["model.context=13", "model.vocab=37", "model.layers=2", "model.init_std=0.2"]


def combinations():
    """Every gate form x qk_norm x norm x packing, then one variation at a time."""
    for gate, qk_norm, norm, qkv in itertools.product(
        ["none", "headwise", "elementwise"], ["none", "pre_rope", "post_rope"], ["rms", "layer"], ["packed", "separate"]
    ):
        yield [f"model.gate={gate}", f"model.qk_norm={qk_norm}", f"model.norm={norm}", f"model.qkv={qkv}"]
    for activation, gate in itertools.product(["sigmoid", "sigmoid2", "silu"], ["headwise", "elementwise"]):
        yield [f"model.gate={gate}", f"model.gate_activation={activation}", "model.gate_bias=true", "model.gate_bias_init=0.7"]
    for qkv, qkv_bias, gate_bias in itertools.product(["packed", "separate"], ["true", "false"], ["true", "false"]):
        yield ["model.gate=elementwise", f"model.qkv={qkv}", f"model.qkv_bias={qkv_bias}", f"model.gate_bias={gate_bias}"]
    yield ["model.position=learned"]
    yield ["model.position=learned", "model.qk_norm=pre_rope"]
    yield ["model.rope_fraction=0.5", "model.rope_theta=500"]
    yield ["model.mlp=geglu", "model.mlp_bias=true"]
    yield ["model.mlp=geglu", "model.mlp_bias=true", "model.gate_up=packed"]
    yield ["model.gate_up=packed"]
    yield ["model.mlp=gelu", "model.mlp_bias=true"]
    yield ["model.mlp=gelu"]
    yield ["model.out_bias=true", "model.head_bias=true"]
    yield ["model.tie_embeddings=true", "model.head_bias=true"]
    yield ["model.tie_embeddings=true", "model.kv_heads=4"]
    yield ["model.tie_embeddings=false", "model.kv_heads=1"]


def load(path):
    with safe_open(path, framework="np") as file:
        config = tomllib.loads(file.metadata()["config"])["model"]
        return config, {name: file.get_tensor(name) for name in file.keys()}


def relative_error(found, expected):
    return np.max(np.abs(found - expected)) / max(np.max(np.abs(expected)), 1e-6)


def worst_error(path):
    """(relative error, name) of the quantity that differs most."""
    config, arrays = load(path)
    shape = (-1, config["context"])
    batch = {name: arrays[name].reshape(shape) for name in ("tokens", "targets", "positions", "first_key")}
    parameters = {n[6:]: a.astype(np.float64) for n, a in arrays.items() if n.startswith("value:")}
    # Not compiled: the operations of all models are of the same shapes, and are then compiled once for all of them.
    oracle = jax.value_and_grad(lambda p: model_oracle.loss_and_logits(p, batch, config), has_aux=True)
    (loss, logits), gradients = oracle(parameters)
    logits = np.asarray(logits).reshape(-1, config["vocab"])
    errors = [
        (relative_error(arrays["logits"], logits), "logits"),
        (abs(arrays["losses"].mean(dtype=np.float64) - loss) / abs(loss), "loss"),
    ]
    for name, expected in gradients.items():
        errors.append((relative_error(arrays["gradient:" + name], np.asarray(expected)), name))
    assert all(np.isfinite(error) for error, _ in errors), errors
    return max(errors)


def main():
    program, config, backend = sys.argv[1:]
    worst, count = (0.0, ""), 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        for overrides in combinations():
            settings = SMALL + [f"backend={backend}"] + overrides
            subprocess.run([program, config, path, *settings], check=True)
            error, name = worst_error(path)
            assert error < RELATIVE_BOUND, f"{' '.join(overrides)}: {name} differs by {error:.2e} of its largest element"
            worst, count = max(worst, (error, name)), count + 1
    print(f"{backend}: {count} models agree; the worst relative error is {worst[0]:.1e} ({worst[1]}), the bound {RELATIVE_BOUND:.0e}")


if __name__ == "__main__":
    main()
