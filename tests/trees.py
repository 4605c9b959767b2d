"""Trees of parameters for the tests: one fixed tree, drawn ones, and values by seed."""

from typing import Any, NamedTuple

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def shape(*dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, jnp.float32)


# Prunable: 12 + 24 + 1 + 24 = 61 weights in four leaves, of rank 2 to 4, one of one weight.
FIXED = {
    "conv": {"kernel": shape(2, 2, 2, 3), "bias": shape(3)},
    "norm": {"scale": shape(3)},
    "blocks": [Layer(shape(3, 4), shape(4))],
    "pair": ({"kernel": shape(1, 1)}, {"weight": shape(2, 3, 4)}),
}
NUM_WEIGHTS = 61


def fill(tree: Any, seed: int, dtype: Any = jnp.float32) -> Any:
    """Normal values in the shapes of `tree`; none of them is 0."""
    rng = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(rng.choice([-1, 1], x.shape) * (0.01 + rng.random(x.shape)), dtype)
    return jax.tree.map(draw, tree)


def map_prunable(f: Any, tree: Any) -> Any:
    """Applies f to kernels and weights not of norms, the leaves that methods prune by default."""

    def apply(path: Any, leaf: Any) -> Any:
        *above, name = (jax.tree_util.keystr((key,), simple=True) for key in path)
        return f(leaf) if name in ("kernel", "weight") and "norm" not in above else leaf

    return jax.tree_util.tree_map_with_path(apply, tree)


def prunable(tree: Any) -> list[np.ndarray]:
    """The leaves that methods prune by default, in the tree's order."""
    found: list[np.ndarray] = []
    map_prunable(lambda leaf: found.append(np.asarray(leaf)), tree)
    return found


def others(tree: Any) -> list[np.ndarray]:
    """The leaves that stay dense."""
    marked = map_prunable(lambda _: None, tree)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(marked)]


def every_other(tree: Any) -> Any:
    """Masks by hand: weights 0, 2, 4, ... of every prunable leaf."""
    dense = jax.tree.map(lambda x: jnp.asarray(np.ones(x.shape, bool)), tree)
    return map_prunable(lambda m: jnp.asarray((np.arange(m.size) % 2 == 0).reshape(m.shape)), dense)


@st.composite
def trees(draw: st.DrawFn) -> Any:
    """Two to four layers in nested dicts, lists, tuples and NamedTuples; shapes without values.

    The first layer has 24 weights, so that the sparsities of the table leave some to every layer.
    """
    shapes = [(4, 6)] + draw(
        st.lists(
            st.sampled_from([(1, 1), (1, 5), (3, 4), (2, 3, 4), (2, 2, 2, 3)]),
            min_size=1,
            max_size=3,
        )
    )
    layers = []
    for dims in shapes:
        kind = draw(st.sampled_from(["dict", "named", "bare", "norm"]))
        kernel, bias = shape(*dims), shape(dims[-1])
        layers.append(
            {
                "dict": {"kernel": kernel, "bias": bias},
                "named": Layer(kernel, bias),
                "bare": {"weight": kernel},
                "norm": {"fc": {"kernel": kernel}, "norm": {"scale": bias, "weight": bias}},
            }[kind]
        )
    containers = {
        "list": layers,
        "tuple": tuple(layers),
        "dict": {f"layer{i}": layer for i, layer in enumerate(layers)},
        "nested": {"head": layers[0], "body": [tuple(layers[1:])]},
    }
    return containers[draw(st.sampled_from(sorted(containers)))]
