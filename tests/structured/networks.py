"""Small networks that have broken the tracers of others, and the groups that each must have.

`between` makes a network of any function of hidden values.

Every network takes its sizes from its parameters, so that it runs with narrower ones as well. In
`groups` a member reads "leaf[axis]", or "leaf[axis]x4" if a unit is 4 indices of the axis.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.structured import ChannelGroups, Member, channel_groups

X, TOKENS, IMAGES = (2, 4), (2, 3, 4), (2, 4, 4, 3)


class Case(NamedTuple):
    """A network.

    Attributes:
      apply: function of (params, x).
      shapes: of params.
      x: the shape of its input, which is float32 but for (2, 5): those are ids below 5.
      groups: by name, the width and the members.
      inner: as in `channel_groups`.
    """

    apply: Callable[[Mapping[str, jax.Array], jax.Array], jax.Array]
    shapes: Mapping[str, tuple[int, ...]]
    x: tuple[int, ...]
    groups: Mapping[str, tuple[int, str]]
    inner: bool = False


def ones(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


W_AND_D = {"w": ones(4, 6), "d": ones(6, 2)}


def between(h: Callable, params: Any = None) -> ChannelGroups:
    """The groups of two matrices with a function of their hidden values between them."""
    return channel_groups(lambda p, x: h(x @ p["w"], p) @ p["d"], params or W_AND_D, ones(2, 4))


def table(groups: ChannelGroups) -> dict[str, tuple[int, str]]:
    """By name, the width and the members of every group."""
    return {g.name: (g.width, " ".join(map(_shown, g.members))) for g in groups}


def _shown(member: Member) -> str:
    each = member.indices.shape[1]
    return f"{member.path}[{member.axis}]" + (f"x{each}" if each > 1 else "")


def conv(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    args = {"dimension_numbers": numbers, "feature_group_count": groups}
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **args)


def pooled(x: jax.Array) -> jax.Array:
    return x.mean((1, 2))


def heads_of(x: jax.Array, size: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], -1, size)


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Of [batch, tokens, heads, size]; a query's heads come in groups that share keys."""
    q = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    weights = jax.nn.softmax(jnp.einsum("bqhgd,bkhd->bhgqk", q, k) / q.shape[-1] ** 0.5)
    out = jnp.einsum("bhgqk,bkhd->bqhgd", weights, v)
    return out.reshape(*out.shape[:2], -1)


def residual(p, x):
    return x + jax.nn.relu(x @ p["up"] + p["bias"][None]) @ p["down"]


def dense_net(p, x):
    h = jax.nn.relu(conv(x, p["c1"]))
    h = jnp.concatenate([h, jax.nn.relu(conv(h, p["c2"]))], -1)
    return pooled(conv(h, p["c3"]))


def concatenated_and_split(p, x):
    h = jnp.concatenate([x @ p["a"], jax.nn.relu(x @ p["b"])], -1)
    u, v = jnp.split(h, [p["d1"].shape[0]], -1)
    return jax.nn.gelu(u) @ p["d1"] + v @ p["d2"]


def shuffled(p, x):
    h = x @ p["w"]
    h = heads_of(h, 4 if p["w"].shape[1] % 4 == 0 else 3).swapaxes(1, 2).reshape(*h.shape)
    return jax.nn.relu(h) @ p["d"]


def shuffled_inside(p, x):
    h = x @ p["w"]
    h = h.reshape(len(h), 2, -1).swapaxes(1, 2).reshape(*h.shape)
    return jax.nn.relu(h) @ p["d"]


def twice(p, x):
    h = x @ p["w"]
    return jnp.concatenate([h, jax.nn.relu(h)], -1) @ p["d"]


def depthwise(p, x):
    h = conv(x, p["c"])
    return pooled(jax.nn.relu(conv(h, p["dw"], h.shape[-1])) @ p["pw"])


def depthwise_on_images(p, x):
    return pooled(jax.nn.relu(conv(x, p["dw"], 3)) @ p["pw"])


def whole_groups(p, x):
    h = jax.nn.relu(conv(x, p["c"]))
    return pooled(conv(h, p["g"], h.shape[-1] // p["g"].shape[2]) @ p["pw"])


def two_groups(p, x):
    return pooled(conv(jax.nn.relu(conv(x, p["c"])), p["g"], 2) @ p["pw"])


def group_norm(p, x):
    h = conv(x, p["c"])
    parts = heads_of(h, 4)
    mean, var = parts.mean((1, 2, 4), keepdims=True), parts.var((1, 2, 4), keepdims=True)
    h = ((parts - mean) * lax.rsqrt(var + 1e-6)).reshape(h.shape) * p["scale"]
    return pooled(jax.nn.relu(h) @ p["d"])


def class_token(p, x):
    h = x @ p["w"]
    token = jnp.broadcast_to(p["token"], (len(h), 1, h.shape[-1]))
    h = jnp.concatenate([token, h], 1) + p["position"]
    return jax.nn.relu(p["mix"] @ h)[:, 0] @ p["d"]


def packed_qkv(p, x):
    qkv = (x @ p["qkv"] + p["bias"]).reshape(*x.shape[:2], 3, -1, 2)
    return attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]) @ p["out"]


def split_qkv(p, x):
    q, k, v = jnp.split(x @ p["qkv"], 3, -1)
    return attention(*(heads_of(y, 2) for y in (q, k, v))) @ p["out"]


def fixed_head_size(p, x):
    return attention(*(heads_of(x @ p[name], 2) for name in "qkv")) @ p["out"]


def kernels_of_heads(p, x):
    q, k, v = (jnp.einsum("btc,chd->bthd", x, p[name]) for name in "qkv")
    return jnp.einsum("btc,co->bto", attention(q, k, v), p["out"].reshape(-1, 4))


def repeated_keys(p, x):
    q, k, v = (heads_of(x @ p[name], 2) for name in "qkv")
    k, v = (jnp.repeat(y, 2, 2) for y in (k, v))
    return attention(q, k, v) @ p["out"]


def gated(p, x):
    u, v = jnp.split(x @ p["up"] + p["bias"], 2, -1)
    return (jax.nn.silu(u) * v) @ p["down"]


def blurred(p, x):
    h = conv(x, p["c"])
    return pooled(conv(h, jnp.full((3, 3, 1, h.shape[-1]), 1 / 9), h.shape[-1]) ** 2 @ p["d"])


def larger(h):
    b, height, width, c = h.shape
    h = h.reshape(b, height, width, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(b, 2 * height, 2 * width, c // 4)


def pixel_shuffle(p, x):
    return pooled(jax.nn.relu(conv(larger(conv(x, p["c1"])), p["c2"])) @ p["d"])


def pixel_shuffle_and_mean(p, x):
    return pooled(jax.nn.relu(larger(conv(x, p["c"])))) @ p["d"]


def pixel_shuffle_channels_first(p, x):
    h = conv(x, p["c1"])
    b, height, width, c = h.shape
    h = h.reshape(b, height, width, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return pooled(jax.nn.relu(h.reshape(b, 2 * height, 2 * width, c // 4)) @ p["d"])


def tied(p, ids):
    h = p["embedding"][ids] @ p["up"]
    return jax.nn.relu(h) @ p["down"] @ p["embedding"].T


def three_branches(p, x):
    h = jax.nn.relu(x @ p["a"] + jnp.tanh(x @ p["b"]) + (x @ p["c"]) ** 2)
    return h @ p["d"]


def added(p, x):
    return jax.nn.relu(x @ p["w"] + p["free"]) @ p["d"]


def squeeze_excite(p, x):
    h = conv(x, p["c"])
    gate = jax.nn.sigmoid(jax.nn.relu(pooled(h) @ p["se1"]) @ p["se2"])
    return pooled((h * gate[:, None, None]) @ p["d"])


def flattened(p, x):
    h = jax.nn.relu(conv(x, p["c"]))
    return h.reshape(len(h), -1) @ p["d"]


def scanned(p, x):
    def layer(h, w):
        up, down = w
        return h + jax.nn.relu(h @ up) @ down, None

    h, _ = lax.scan(layer, x @ p["in"], (p["up"], p["down"]))
    return h @ p["d"]


def checkpointed(p, x):
    return jax.checkpoint(residual)(p, x)


def shared(p, x):
    h = jax.nn.relu(x @ p["in"])
    for _ in range(2):
        h = jax.nn.relu(h @ p["w"] + p["bias"])
    return h @ p["d"]


def recurrent(p, x):
    def cell(state, x):
        c, h = state
        i, f, g, o = jnp.split(x @ p["x"] + h @ p["h"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (c, jax.nn.sigmoid(o) * jnp.tanh(c)), None

    zeros = jnp.zeros((len(x), p["h"].shape[0]))
    (_, h), _ = lax.scan(cell, (zeros, zeros), x.swapaxes(0, 1))
    return h @ p["d"]


def branched(p, x):
    h = lax.cond(x.sum() > 0, lambda: x @ p["a"], lambda: jnp.tanh(x @ p["b"]))
    h = lax.fori_loop(0, 2, lambda i, h: jax.nn.relu(h * p["scale"]), h)
    return h @ p["d"]


def low_rank(p, x):
    return x @ (p["w"] + p["a"] @ p["b"]) @ p["d"]


def mixer(p, x):
    h = x @ p["in"]
    h = h + (jax.nn.gelu(h.swapaxes(1, 2) @ p["t1"]) @ p["t2"]).swapaxes(1, 2)
    return h.mean(1) @ p["d"]


def padded_shortcut(p, x):
    h = jax.nn.relu(x @ p["a"])
    wide = jnp.pad(h, ((0, 0), (0, p["b"].shape[1] - h.shape[1])))
    return jax.nn.relu(wide + h @ p["b"]) @ p["d"]


def experts(p, x):
    gate = jax.nn.sigmoid(x @ p["gate"])
    h = jax.nn.relu(jnp.einsum("bi,eio->beo", x, p["up"]))
    return jnp.einsum("beo,eoi,be->bi", h, p["down"], gate)


def fixed_heads(p, x):
    h = (x @ p["w"]).reshape(len(x), 4, -1) * jnp.array([1.0, 2.0, 3.0, 4.0])[:, None]
    return jax.nn.relu(h.reshape(len(x), 8, -1) + p["bias"]).reshape(len(x), -1) @ p["d"]


OF_HEADS = {"q": (4, 8), "k": (4, 8), "v": (4, 8), "out": (8, 4)}
CASES: dict[str, Case] = {
    "residual": Case(
        residual,
        {"up": (4, 6), "bias": (6,), "down": (6, 4)},
        X,
        {"up": (6, "up[1] down[0] bias[0]")},
    ),
    "dense_net": Case(
        dense_net,
        {"c1": (3, 3, 3, 5), "c2": (1, 1, 5, 4), "c3": (1, 1, 9, 2)},
        IMAGES,
        {"c1": (5, "c1[3] c2[2] c3[2]"), "c2": (4, "c2[3] c3[2]")},
    ),
    "concatenated_and_split": Case(
        concatenated_and_split,
        {"a": (4, 6), "b": (4, 4), "d1": (6, 2), "d2": (4, 2)},
        X,
        {"a": (6, "a[1] d1[0]"), "b": (4, "b[1] d2[0]")},
    ),
    "shuffled": Case(shuffled, {"w": (4, 8), "d": (8, 2)}, X, {"w": (2, "w[1]x4 d[0]x4")}),
    "shuffled_inside": Case(
        shuffled_inside, {"w": (4, 8), "d": (8, 2)}, X, {"w": (4, "w[1]x2 d[0]x2")}, inner=True
    ),
    "twice": Case(twice, {"w": (4, 5), "d": (10, 2)}, X, {"w": (5, "w[1] d[0]x2")}),
    "depthwise": Case(
        depthwise,
        {"c": (1, 1, 3, 4), "dw": (3, 3, 1, 8), "pw": (8, 2)},
        IMAGES,
        {"c": (4, "c[3] dw[3]x2 pw[0]x2")},
    ),
    "depthwise_on_images": Case(
        depthwise_on_images,
        {"dw": (3, 3, 1, 6), "pw": (6, 2)},
        IMAGES,
        {"dw": (2, "dw[3]x3 pw[0]x3")},
    ),
    "whole_groups": Case(
        whole_groups,
        {"c": (1, 1, 3, 8), "g": (3, 3, 4, 6), "pw": (6, 2)},
        IMAGES,
        {"c": (2, "c[3]x4 g[3]x3 pw[0]x3")},
    ),
    "two_groups": Case(
        two_groups,
        {"c": (1, 1, 3, 8), "g": (3, 3, 4, 6), "pw": (6, 2)},
        IMAGES,
        {"c": (4, "c[3]x2 g[2]"), "g": (3, "g[3]x2 pw[0]x2")},
        inner=True,
    ),
    "group_norm": Case(
        group_norm,
        {"c": (1, 1, 3, 12), "scale": (1, 1, 1, 12), "d": (12, 2)},
        IMAGES,
        {"c": (3, "c[3]x4 d[0]x4 scale[3]x4")},
    ),
    "class_token": Case(
        class_token,
        {"w": (4, 6), "token": (1, 1, 6), "position": (1, 4, 6), "mix": (4, 4), "d": (6, 2)},
        TOKENS,
        {"w": (6, "w[1] d[0] position[2] token[2]")},
    ),
    "packed_qkv": Case(
        packed_qkv,
        {"qkv": (4, 18), "bias": (1, 1, 18), "out": (6, 4)},
        TOKENS,
        {"qkv": (3, "qkv[1]x6 out[0]x2 bias[2]x6")},
    ),
    "split_qkv": Case(
        split_qkv, {"qkv": (4, 18), "out": (6, 4)}, TOKENS, {"qkv": (3, "qkv[1]x6 out[0]x2")}
    ),
    "fixed_head_size": Case(
        fixed_head_size, OF_HEADS, TOKENS, {"q": (4, "q[1]x2 k[1]x2 v[1]x2 out[0]x2")}
    ),
    "kernels_of_heads": Case(
        kernels_of_heads,
        {"q": (4, 3, 2), "k": (4, 3, 2), "v": (4, 3, 2), "out": (3, 2, 4)},
        TOKENS,
        {"q": (3, "q[1] k[1] v[1] out[0]")},
    ),
    "grouped_queries": Case(
        fixed_head_size,
        OF_HEADS | {"k": (4, 4), "v": (4, 4)},
        TOKENS,
        {"q": (2, "q[1]x4 k[1]x2 v[1]x2 out[0]x4")},
    ),
    "fixed_heads": Case(
        fixed_heads,
        {"w": (4, 24), "bias": (8, 3), "d": (24, 2)},
        X,
        {"w": (3, "w[1]x8 d[0]x8 bias[1]")},
    ),
    "repeated_keys": Case(
        repeated_keys,
        OF_HEADS | {"k": (4, 4), "v": (4, 4)},
        TOKENS,
        {"q": (2, "q[1]x4 k[1]x2 v[1]x2 out[0]x4")},
    ),
    "gated": Case(
        gated,
        {"up": (4, 10), "bias": (1, 10), "down": (5, 4)},
        X,
        {"up": (5, "up[1]x2 down[0] bias[1]x2")},
    ),
    "blurred": Case(blurred, {"c": (1, 1, 3, 5), "d": (5, 2)}, IMAGES, {"c": (5, "c[3] d[0]")}),
    "pixel_shuffle_and_mean": Case(
        pixel_shuffle_and_mean,
        {"c": (1, 1, 3, 12), "d": (3, 2)},
        IMAGES,
        {"c": (3, "c[3]x4 d[0]")},
    ),
    "pixel_shuffle": Case(
        pixel_shuffle,
        {"c1": (1, 1, 3, 12), "c2": (3, 3, 3, 5), "d": (5, 2)},
        IMAGES,
        {"c1": (3, "c1[3]x4 c2[2]"), "c2": (5, "c2[3] d[0]")},
    ),
    "pixel_shuffle_channels_first": Case(
        pixel_shuffle_channels_first,
        {"c1": (1, 1, 3, 12), "d": (3, 2)},
        IMAGES,
        {"c1": (3, "c1[3]x4 d[0]")},
    ),
    "tied": Case(
        tied,
        {"embedding": (5, 4), "up": (4, 6), "down": (6, 4)},
        (2, 5),
        {
            "embedding": (4, "embedding[1] down[1] up[0]"),
            "up": (6, "up[1] down[0]"),
        },
    ),
    "three_branches": Case(
        three_branches,
        {"a": (4, 5), "b": (4, 5), "c": (4, 5), "d": (5, 2)},
        X,
        {"a": (5, "a[1] b[1] c[1] d[0]")},
    ),
    "added": Case(
        added, {"w": (4, 5), "free": (1, 5), "d": (5, 2)}, X, {"w": (5, "w[1] d[0] free[1]")}
    ),
    "squeeze_excite": Case(
        squeeze_excite,
        {"c": (1, 1, 3, 6), "se1": (6, 3), "se2": (3, 6), "d": (6, 2)},
        IMAGES,
        {"c": (6, "c[3] se2[1] se1[0] d[0]"), "se1": (3, "se1[1] se2[0]")},
    ),
    "flattened": Case(
        flattened, {"c": (3, 3, 3, 5), "d": (80, 2)}, IMAGES, {"c": (5, "c[3] d[0]x16")}
    ),
    "scanned": Case(
        scanned,
        {"in": (4, 5), "up": (3, 5, 6), "down": (3, 6, 5), "d": (5, 2)},
        X,
        {"in": (5, "in[1] down[2] up[1] d[0]"), "up": (6, "up[2] down[1]")},
    ),
    "checkpointed": Case(
        checkpointed,
        {"up": (4, 6), "bias": (6,), "down": (6, 4)},
        X,
        {"up": (6, "up[1] down[0] bias[0]")},
    ),
    "shared": Case(
        shared,
        {"in": (4, 5), "w": (5, 5), "bias": (1, 5), "d": (5, 2)},
        X,
        {"in": (5, "in[1] w[1] w[0] d[0] bias[1]")},
    ),
    "recurrent": Case(
        recurrent,
        {"x": (4, 12), "h": (3, 12), "d": (3, 2)},
        TOKENS,
        {"x": (3, "x[1]x4 h[1]x4 h[0] d[0]")},
    ),
    "branched": Case(
        branched,
        {"a": (4, 5), "b": (4, 5), "scale": (1, 5), "d": (5, 2)},
        X,
        {"b": (5, "b[1] a[1] d[0] scale[1]")},
    ),
    "low_rank": Case(
        low_rank,
        {"w": (4, 5), "a": (4, 3), "b": (3, 5), "d": (5, 2)},
        X,
        {"w": (5, "w[1] d[0] b[1]"), "a": (3, "a[1] b[0]")},
    ),
    "mixer": Case(
        mixer,
        {"in": (4, 5), "t1": (3, 6), "t2": (6, 3), "d": (5, 2)},
        TOKENS,
        {"in": (5, "in[1] d[0]"), "t1": (6, "t1[1] t2[0]")},
    ),
    "padded_shortcut": Case(
        padded_shortcut,
        {"a": (4, 3), "b": (3, 7), "d": (7, 2)},
        X,
        {"a": (3, "a[1] b[1] b[0] d[0]"), "b": (4, "b[1] d[0]")},
    ),
    "experts": Case(
        experts,
        {"gate": (4, 3), "up": (3, 4, 5), "down": (3, 5, 4)},
        X,
        {"gate": (3, "gate[1] up[0] down[0]")},
    ),
}
