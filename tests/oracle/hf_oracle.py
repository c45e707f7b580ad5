"""Llama, Qwen3 and Qwen3.5 with full attention, written from their definitions in numpy and float64.

Reads a Hugging Face folder: config.json and safetensors files, nothing else. Nothing here is shared with the C++ code.
"""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16}


def read_arrays(path):
    """The arrays of one safetensors file, bits as they are."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def read_folder(folder):
    """(config, arrays) of a model of one or several files."""
    config = json.loads((folder / "config.json").read_text())
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return config, {name: array for file in files for name, array in read_arrays(folder / file).items()}


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotate(x, c):
    """x [T, heads, D]: element j of the first R turns with element j + R/2."""
    rope = c["rope_parameters"]
    r = int(c["head_dim"] * rope.get("partial_rotary_factor", 1.0))
    inv_freq = 1.0 / rope["rope_theta"] ** (np.arange(0, r, 2) / r)
    angle = np.arange(x.shape[0])[:, None] * inv_freq
    angle = np.concatenate([angle, angle], axis=-1)[:, None, :]
    turned, rest = x[..., :r], x[..., r:]
    half = np.concatenate([-turned[..., r // 2 :], turned[..., : r // 2]], axis=-1)
    return np.concatenate([turned * np.cos(angle) + half * np.sin(angle), rest], axis=-1)


def activation(name, x):
    if name == "silu":
        return x / (1 + np.exp(-x))
    assert name == "gelu_pytorch_tanh"
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class Model:
    def __init__(self, config, arrays):
        self.c = config
        self.p = {name: array.astype(np.float64) for name, array in arrays.items()}
        self.gain_offset = 1.0 if config["model_type"] == "qwen3_5_text" else 0.0

    def linear(self, name, x):
        y = x @ self.p[name + ".weight"].T
        return y + self.p[name + ".bias"] if name + ".bias" in self.p else y

    def norm(self, name, x):
        return rms_norm(x, self.p[name + ".weight"] + self.gain_offset, self.c["rms_norm_eps"])

    def query_and_gate(self, name, x):
        """q [T, heads, D]; gate broadcastable to it, or None."""
        t, h, g, d = x.shape[0], self.c["num_attention_heads"], self.c["num_key_value_heads"], self.c["head_dim"]
        q = self.linear(name + ".q_proj", x)
        if self.c["model_type"] == "qwen3_5_text":
            q, gate = np.split(q.reshape(t, h, 2 * d), 2, axis=-1)
            return q, gate
        if self.c.get("headwise_attn_output_gate") or self.c.get("elementwise_attn_output_gate"):
            q = q.reshape(t, g, -1)  # the gate paper's code: by key/value head
            cut = h // g * d
            return q[..., :cut].reshape(t, h, d), q[..., cut:].reshape(t, h, -1)
        return q.reshape(t, h, d), None

    def attention(self, name, x):
        t, h, g, d = x.shape[0], self.c["num_attention_heads"], self.c["num_key_value_heads"], self.c["head_dim"]
        q, gate = self.query_and_gate(name, x)
        k, v = (self.linear(f"{name}.{which}_proj", x).reshape(t, g, d) for which in "kv")
        if self.c["model_type"] != "llama" and self.c.get("use_qk_norm", True):
            q, k = self.norm(name + ".q_norm", q), self.norm(name + ".k_norm", k)
        q, k = rotate(q, self.c), rotate(k, self.c)
        k, v = np.repeat(k, h // g, axis=1), np.repeat(v, h // g, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(d)
        scores = np.where(np.tril(np.ones((t, t), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        o = np.einsum("hij,jhd->ihd", weights, v)
        if gate is not None:
            o = o / (1 + np.exp(-gate))
        return self.linear(name + ".o_proj", o.reshape(t, h * d))

    def mlp(self, name, x):
        gate = activation(self.c["hidden_act"], self.linear(name + ".gate_proj", x))
        return self.linear(name + ".down_proj", gate * self.linear(name + ".up_proj", x))

    def logits(self, tokens):
        x = self.p["model.embed_tokens.weight"][tokens]
        for i in range(self.c["num_hidden_layers"]):
            name = f"model.layers.{i}."
            x = x + self.attention(name + "self_attn", self.norm(name + "input_layernorm", x))
            x = x + self.mlp(name + "mlp", self.norm(name + "post_attention_layernorm", x))
        head = "model.embed_tokens.weight" if self.c["tie_word_embeddings"] else "lm_head.weight"
        return self.norm("model.norm", x) @ self.p[head].T
