"""The forward pass as one file: exported by `jax.export`, with the active weights inside."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.processes import whole
from jaxsparse.types import PyTree

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_forward(
    forward: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    symbolic_batch: bool = True,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> jax.export.Exported:
    """Exports a forward pass together with its weights: a program that needs no model or params.

        exported = export_forward(lambda p, x: model.apply({"params": p}, x), params, images)
        path.write_bytes(exported.serialize())

        exported = jax.export.deserialize(bytearray(path.read_bytes()))  # needs jax alone
        logits = jax.jit(exported.call)(images)

    A leaf that is mostly 0 is stored as its other values and their positions, and the program fills
    the kernel before it runs. The file is thus about as large as the active weights: 8 bytes for
    each one in float32. A leaf with half or more of its values not 0 is stored dense. Masks are not
    needed: inactive weights are 0 in params, and an active weight of 0 makes no difference to a
    forward pass. The program is not faster than the dense model.

    The weights are constants of the program, not arguments, so one file is the whole model. On CPU
    its results equal those of `jax.jit(lambda x: forward(params, x))` to the bit. If weights were
    arguments, XLA might sum in another order, and results would differ by rounding. If you need the
    results of `jax.jit(forward)` exactly, or one program for many weights, export (params, inputs)
    with `jax.export` and save params beside it (`examples/export_model.py` does both).

    The file has no checksum: JAX runs a program with a flipped bit in its weights without an error
    (93 of 120 trials). Keep `hashlib.sha256(data).hexdigest()` beside it, and compare it before
    `deserialize`.

    Args:
      forward: function of (params, *inputs).
      params: any pytree of arrays, stored masked. A Python number stays a Python number, so that
        its dtype still follows the other operand, as in the model.
      *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`; only their shapes and dtypes are used.
      symbolic_batch: whether the first axis of every input is a batch of any size, the same for
        all. If False, or if an input has a symbolic shape already, shapes are as given.
      platforms: platforms that the program runs on, from "cpu", "cuda", "rocm" and "tpu". None of
        them is needed for the export.

    Returns:
      The exported function of the inputs. To serialize it, JAX needs the package flatbuffers, which
      `pip install 'jaxsparse[export]'` installs.

    Raises:
      ValueError: platforms is empty, or holds something else.

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
    """A function that makes the leaf from as few constants as possible."""
    # Python's numbers, and arrays made from them, have weak types, which NumPy does not know.
    if isinstance(leaf, bool | int | float | complex) or getattr(leaf, "weak_type", False):
        return lambda: leaf
    array = np.ascontiguousarray(whole(leaf)).reshape(np.shape(leaf))
    # Compared by bits, so that -0.0 stays -0.0.
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
