"""The language model written from its definition in jax, in float64: the oracle for logits, losses and gradients.

Parameters bear the names of Quaver's files. Nothing here is shared with the C++ code.
"""

import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)


def rms_norm(x, gain, epsilon):
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon) * gain


def layer_norm(x, gain, bias, epsilon):
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + epsilon) * gain + bias


def norm(p, name, x, c):
    if c["norm"] == "layer":
        return layer_norm(x, p[name + ".gain"], p[name + ".bias"], c["norm_epsilon"])
    return rms_norm(x, p[name + ".gain"], c["norm_epsilon"])


def linear(p, name, x):
    y = x @ p[name + ".weight"].T
    return y + p[name + ".bias"] if name + ".bias" in p else y


def rope(x, positions, c):
    """x [B, T, heads, D]: the pairs (j, j + R/2) of the first R elements turn by position * theta^(-2j/R)."""
    pairs = int(c["rope_fraction"] * c["head_dim"]) // 2
    angle = positions[..., None] * c["rope_theta"] ** (-jnp.arange(pairs) / pairs)
    cos, sin = jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :]
    a, b, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def heads_before_attention(p, name, x, positions, c):
    gain = p.get(name + ".gain")
    if c["qk_norm"] == "pre_rope":
        x = rms_norm(x, gain, c["norm_epsilon"])
    if c["position"] == "rope":
        x = rope(x, positions, c)
    if c["qk_norm"] == "post_rope":
        x = rms_norm(x, gain, c["norm_epsilon"])
    return x


def projections(p, name, x, c):
    """q, k, v, gate; packed columns stand in the order q | k | v | gate."""
    q, kv = c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"]
    if c["qkv"] == "separate":
        gate = linear(p, name + ".gate_proj", x) if c["gate"] != "none" else None
        return [linear(p, f"{name}.{which}_proj", x) for which in "qkv"] + [gate]
    packed = x @ p[name + ".qkv_proj.weight"].T
    bias = p.get(name + ".qkv_proj.bias")
    if bias is not None:
        begin = 0 if c["qkv_bias"] else q + 2 * kv
        packed = packed.at[..., begin : begin + bias.size].add(bias)
    gate = packed[..., q + 2 * kv :] if c["gate"] != "none" else None
    return packed[..., :q], packed[..., q : q + kv], packed[..., q + kv : q + 2 * kv], gate


def gate_activation(g, c):
    return {"sigmoid": jax.nn.sigmoid(g), "sigmoid2": 2 * jax.nn.sigmoid(g), "silu": jax.nn.silu(g)}[c["gate_activation"]]


def attention(p, name, x, batch, c):
    b, t, _ = x.shape
    h, g, d = c["heads"], c["kv_heads"], c["head_dim"]
    q, k, v, gate = projections(p, name, x, c)
    q = heads_before_attention(p, name + ".q_norm", q.reshape(b, t, h, d), batch["positions"], c)
    k = heads_before_attention(p, name + ".k_norm", k.reshape(b, t, g, d), batch["positions"], c)
    k, v = jnp.repeat(k, h // g, axis=2), jnp.repeat(v.reshape(b, t, g, d), h // g, axis=2)
    scores = jnp.einsum("bihd,bjhd->bhij", q, k) / jnp.sqrt(d)
    i, j = jnp.arange(t)[None, :, None], jnp.arange(t)[None, None, :]
    visible = (j <= i) & (j >= batch["first_key"][:, :, None])
    weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf), axis=-1)
    o = jnp.einsum("bhij,bjhd->bihd", weights, v)
    if c["gate"] == "headwise":
        o = o * gate_activation(gate, c)[..., None]
    elif c["gate"] == "elementwise":
        o = o * gate_activation(gate, c).reshape(b, t, h, d)
    return linear(p, name + ".out_proj", o.reshape(b, t, h * d))


def feed_forward(p, name, x, c):
    if c["mlp"] == "gelu":
        h = jax.nn.gelu(linear(p, name + ".up_proj", x), approximate=True)
    else:
        if c["gate_up"] == "packed":
            gate, up = jnp.split(linear(p, name + ".gate_up_proj", x), 2, axis=-1)
        else:
            gate, up = linear(p, name + ".gate_proj", x), linear(p, name + ".up_proj", x)
        h = (jax.nn.silu(gate) if c["mlp"] == "swiglu" else jax.nn.gelu(gate, approximate=True)) * up
    return linear(p, name + ".down_proj", h)


def logits(p, batch, c):
    x = p["embedding.weight"][batch["tokens"]]
    if c["position"] == "learned":
        x = x + p["position_embedding.weight"][batch["positions"]]
    for layer in range(c["layers"]):
        name = f"blocks.{layer}"
        x = x + attention(p, name + ".attention", norm(p, name + ".attention_norm", x, c), batch, c)
        x = x + feed_forward(p, name + ".mlp", norm(p, name + ".mlp_norm", x, c), c)
    x = norm(p, "final_norm", x, c)
    if c["tie_embeddings"]:
        y = x @ p["embedding.weight"].T
        return y + p["lm_head.bias"] if "lm_head.bias" in p else y
    return linear(p, "lm_head", x)


def loss_and_logits(p, batch, c):
    """The mean loss, and the logits it comes from."""
    z = logits(p, batch, c)
    log_p = jax.nn.log_softmax(z, axis=-1)
    return -jnp.mean(jnp.take_along_axis(log_p, batch["targets"][..., None], axis=-1)), z
