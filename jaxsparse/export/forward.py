"""The forward pass as one file: compiled by `jax.export`, with the active weights in it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.types import PyTree

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_forward(
    forward: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    symbolic_batch: bool = True,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> jax.export.Exported:
    """Lowers a forward pass with its weights in it: a program that needs neither model nor params.

        exported = export_forward(lambda p, x: model.apply({"params": p}, x), params, images)
        path.write_bytes(exported.serialize())

        exported = jax.export.deserialize(bytearray(path.read_bytes()))  # needs jax alone
        logits = jax.jit(exported.call)(images)

    A leaf that is mostly 0 goes in as its other values and their positions, and the program fills
    the kernel before it runs; so the file is about as large as the active weights, 8 bytes for each
    one in float32. A leaf of which half or more is left goes in dense. Masks play no part: inactive
    weights are 0 in params, and an active weight of 0 makes no difference to a forward pass. It
    does not run any faster than the dense model.

    The weights are constants of the program, not arguments, so that one file is the whole model. On
    CPU its results are those of `jax.jit(lambda x: forward(params, x))` to the bit. With weights as
    arguments XLA may sum in another order, and results differ by rounding; where that matters, or
    one program is to serve many weights, export (params, inputs) with `jax.export` itself, which is
    exact, and save params beside it (`examples/export_model.py` does both).

    Nothing in the file vouches for its bytes: JAX runs a program with a flipped bit in its weights
    without a word (93 of 120 trials). Keep `hashlib.sha256(data).hexdigest()` beside it, and
    compare before `deserialize`.

    Args:
      forward: function of (params, *inputs).
      params: any pytree of arrays, stored masked. A Python number stays one, so that it gives way
        to the dtype of what it meets, as it does in the model.
      *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`, for their shapes and dtypes.
      symbolic_batch: the first axis of every input is a batch of any size, the same for all. Where
        False, or where an input has a symbolic shape already, shapes are as given.
      platforms: what the program runs on, of "cpu", "cuda", "rocm" and "tpu"; it takes none of them
        to export for them.

    Returns:
      The exported function of inputs alone. To serialize it JAX needs the package flatbuffers,
      which `pip install 'jaxsparse[export]'` brings.

    Raises:
      ValueError: no platform, or one that is none of the four.

    >>> params = {"kernel": jnp.zeros((1000, 1000)).at[:, 0].set(1.0)}
    >>> exported = export_forward(lambda p, x: x @ p["kernel"], params, jnp.ones((1, 1000)))
    >>> exported.call(jnp.ones((3, 1000)))[:, 0]
    Array([1000., 1000., 1000.], dtype=float32)
    >>> exported.in_avals
    (ShapedArray(float32[batch,1000]),)
    """
    if not platforms or any(platform not in _PLATFORMS for platform in platforms):
        raise ValueError(f"platforms {platforms!r} must be one or more of {', '.join(_PLATFORMS)}")
    (batch,) = jax.export.symbolic_shape("batch")

    def spec(x: Any) -> jax.ShapeDtypeStruct:
        shape = tuple(np.shape(x))
        if symbolic_batch and shape and all(isinstance(n, int) for n in shape):
            shape = (batch, *shape[1:])
        return jax.ShapeDtypeStruct(shape, jnp.result_type(x))

    weights = jax.tree.map(_filler, params)
    call = lambda *xs: forward(jax.tree.map(lambda fill: fill(), weights), *xs)
    return jax.export.export(jax.jit(call), platforms=platforms)(*jax.tree.map(spec, inputs))


def _filler(leaf: Any) -> Callable[[], Any]:
    """A function that makes the leaf, of as few constants as it takes."""
    # Python's numbers and what is made of them have weak types, which NumPy does not know.
    if isinstance(leaf, bool | int | float | complex) or getattr(leaf, "weak_type", False):
        return lambda: leaf
    array = np.asarray(leaf, order="C")
    # By bit pattern, so that -0.0 stays what it is.
    kept = array.reshape(-1, 1).view(np.uint8).any(axis=1)
    positions = np.flatnonzero(kept).astype(np.int32)
    if array.size >= 2**31 or len(positions) * (4 + array.itemsize) >= array.nbytes:
        return lambda: jnp.asarray(array)
    values = array.ravel()[positions]

    def fill() -> jax.Array:
        flat = jnp.zeros(array.size, array.dtype)
        flat = flat.at[positions].set(values, unique_indices=True, indices_are_sorted=True)
        return flat.reshape(array.shape)

    return fill
