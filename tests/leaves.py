"""Single leaves and their masks, drawn by hypothesis: any bits at all."""

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np

DTYPES = ["float32", "bfloat16", "float16", "float64", "int8", "float8_e4m3fn"]


@st.composite
def leaves(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(weights, mask) of rank 0 to 5: NaN, inf, -0.0, some active zeros, empty, all dense."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=5)))
    dtype = jnp.dtype(draw(st.sampled_from(DTYPES)))
    density = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
    weights = np.where(rng.random(shape) < 0.2, np.zeros((), dtype), weights)
    return weights, np.asarray(rng.random(shape) < density)


def bits(x):
    """What two arrays that are the same to the bit have in common."""
    return x.dtype, x.shape, np.asarray(x).tobytes()


def masked(weights: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The oracle of `apply_mask`."""
    return np.where(mask, weights, np.zeros((), weights.dtype))
