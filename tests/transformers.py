"""A GPT and a ViT, small, in linen and in NNX: what people train, with every kind of kernel in it.

The attention's kernels have three axes, the gate's (in, 2, features), and the mixer's come back
from two axes at once; embeddings, positions and norms stay dense.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

WIDTH, HEADS, TOKENS, CLASSES = 16, 2, 6, 8
IDS = jnp.asarray(np.random.default_rng(0).integers(0, CLASSES, (4, TOKENS)))
IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 3)), jnp.float32)


class LinenBlock(nn.Module):
    dtype: Any = None

    @nn.compact
    def __call__(self, x, mask=None):
        of_all = {"dtype": self.dtype}
        attention = nn.MultiHeadDotProductAttention(HEADS, name="attn", **of_all)
        x = x + attention(nn.LayerNorm(**of_all)(x), mask=mask)
        gated = nn.DenseGeneral((2, 2 * WIDTH), **of_all)(nn.LayerNorm(**of_all)(x))
        hidden = nn.gelu(gated[..., 0, :]) * gated[..., 1, :]
        hidden = hidden.reshape(*hidden.shape[:-1], -1, WIDTH // 2)
        return x + nn.DenseGeneral(WIDTH, axis=(-2, -1), **of_all)(hidden)


class LinenGpt(nn.Module):
    dtype: Any = None

    @nn.compact
    def __call__(self, ids):
        tokens = nn.Embed(CLASSES, WIDTH, dtype=self.dtype)
        position = self.param("position", nn.initializers.normal(0.02), (TOKENS, WIDTH))
        x = tokens(ids) + position[None].astype(self.dtype)
        x = LinenBlock(self.dtype)(x, nn.make_causal_mask(ids))
        return tokens.attend(nn.LayerNorm(dtype=self.dtype)(x))


class LinenVit(nn.Module):
    dtype: Any = None

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(WIDTH, (4, 4), strides=4, name="patches", dtype=self.dtype)(images)
        x = x.reshape(len(x), -1, WIDTH)
        x = x + self.param("position", nn.initializers.normal(0.02), (4, WIDTH))[None]
        x = LinenBlock(self.dtype)(x.astype(self.dtype))
        return nn.Dense(CLASSES, name="head", dtype=self.dtype)(x.mean(1))


class NnxBlock(nnx.Module):
    def __init__(self, dtype, rngs):
        of_all = {"dtype": dtype, "rngs": rngs}
        self.attn = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, **of_all)
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, **of_all), nnx.LayerNorm(WIDTH, **of_all)
        self.linear_general_0 = nnx.LinearGeneral(WIDTH, (2, 2 * WIDTH), **of_all)
        self.linear_general_1 = nnx.LinearGeneral((4, WIDTH // 2), WIDTH, axis=(-2, -1), **of_all)

    def __call__(self, x, mask=None):
        x = x + self.attn(self.norm1(x), mask=mask)
        gated = self.linear_general_0(self.norm2(x))
        hidden = nnx.gelu(gated[..., 0, :]) * gated[..., 1, :]
        return x + self.linear_general_1(hidden.reshape(*hidden.shape[:-1], -1, WIDTH // 2))


class NnxGpt(nnx.Module):
    def __init__(self, dtype, rngs):
        self.tokens = nnx.Embed(CLASSES, WIDTH, dtype=dtype, rngs=rngs)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (TOKENS, WIDTH)))
        self.block = NnxBlock(dtype, rngs)
        self.norm, self.dtype = nnx.LayerNorm(WIDTH, dtype=dtype, rngs=rngs), dtype

    def __call__(self, ids):
        x = self.tokens(ids) + self.position[...][None].astype(self.dtype)
        x = self.block(x, nnx.make_causal_mask(ids))
        return self.tokens.attend(self.norm(x))


class NnxVit(nnx.Module):
    def __init__(self, dtype, rngs):
        self.patches = nnx.Conv(3, WIDTH, (4, 4), strides=4, dtype=dtype, rngs=rngs)
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (4, WIDTH)))
        self.block = NnxBlock(dtype, rngs)
        self.head, self.dtype = nnx.Linear(WIDTH, CLASSES, dtype=dtype, rngs=rngs), dtype

    def __call__(self, images):
        x = self.patches(images)
        x = x.reshape(len(x), -1, WIDTH) + self.position[...][None]
        return self.head(self.block(x.astype(self.dtype)).mean(1))


class Network(NamedTuple):
    """A network as a function.

    Attributes:
      forward: (params, inputs) -> logits.
      params: a nested dict, float32.
      inputs: a batch.
      labels: of the batch, one for each row of logits.
    """

    forward: Callable[[Any, jax.Array], jax.Array]
    params: Any
    inputs: jax.Array
    labels: jax.Array


def network(name: str, dtype: Any = jnp.float32) -> Network:
    """Returns one of "linen gpt", "linen vit", "nnx gpt", "nnx vit", computing in `dtype`."""
    is_gpt = name.endswith("gpt")
    inputs = IDS if is_gpt else IMAGES
    labels = jnp.roll(IDS, -1, 1) if is_gpt else jnp.arange(len(IMAGES))
    if name.startswith("linen"):
        model = (LinenGpt if is_gpt else LinenVit)(dtype)
        params = _drawn(jax.eval_shape(model.init, jax.random.key(0), inputs)["params"])
        forward = lambda params, x: model.apply({"params": params}, x)
    else:
        kind = NnxGpt if is_gpt else NnxVit
        graph, state = nnx.split(nnx.eval_shape(lambda: kind(dtype, nnx.Rngs(0))), nnx.Param)
        params = _drawn(nnx.to_pure_dict(state))
        forward = lambda params, x: nnx.merge(graph, _state(state, params))(x)
    return Network(_promoting(forward), params, inputs, labels)


def _drawn(shapes: Any) -> Any:
    """Parameters by NumPy, which has nothing to compile."""
    rng = np.random.default_rng(0)

    def draw(path: Any, x: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        fixed = {"scale": 1.0, "bias": 0.0}.get(name)
        values = rng.normal(0, 0.2, x.shape) if fixed is None else np.full(x.shape, fixed)
        return jnp.asarray(values, x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _state(state: nnx.State, params: Any) -> nnx.State:
    new = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(new, params)
    return new


def _promoting(forward: Callable) -> Callable:
    def promoting(params: Any, x: jax.Array) -> jax.Array:
        with jax.numpy_rank_promotion("allow"):  # flax adds biases so
            return forward(params, x)

    return promoting


NAMES = ["linen gpt", "linen vit", "nnx gpt", "nnx vit"]
