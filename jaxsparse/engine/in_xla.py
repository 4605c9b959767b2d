"""Forward passes in programs of XLA: its own operations, and calls of the engine between them."""

import functools
import hashlib
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.engine.plans import Plan
from jaxsparse.engine.steps import Outside, Segment
from jaxsparse.kernels.build import engine_library
from jaxsparse.kernels.load import backend
from jaxsparse.tracing.equations import bound


def run_steps(
    plan: Plan, leaves: Sequence[jax.Array], programs: Sequence[jax.Array], threads: int
) -> list[jax.Array]:
    """Returns the outputs of a plan.

    Args:
      plan: for any number of images, or for that of the inputs.
      leaves: the inputs, [images, ...].
      programs: the bytes of the plan's programs, uint8: as arrays, so that no program of XLA has
        them inside.
      threads: of the engine.
    """
    images = leaves[0].shape[0]
    arrays: dict[int, Any] = {
        x.number: leaf for x, leaf in zip(plan.trace.inputs, leaves, strict=True)
    }
    read = lambda x: arrays[x.number] if isinstance(x, Outside) else x
    left = iter(zip(plan.programs, programs, strict=True))
    for step in plan.trace.steps:
        if isinstance(step, Segment):
            given = [read(x).astype(jnp.float32) for x in step.inputs]
            found = _run_segment(*next(left), given, step.outputs, images, threads)
        else:
            wanted = [var.aval.dtype for var in step.eqn.invars]
            given = [read(x) for x in step.operands]
            found = bound(step.eqn, [_as(x, d) for x, d in zip(given, wanted, strict=True)])
        arrays.update((x.number, y) for x, y in zip(step.outputs, found, strict=True))
    made = zip(plan.trace.outputs, plan.trace.dtypes, strict=True)
    return [_as(read(x), dtype) for x, dtype in made]


def _run_segment(
    program: bytes,
    given_program: jax.Array,
    given: list[Any],
    outputs: Sequence[Outside],
    images: int,
    threads: int,
) -> list[jax.Array]:
    if backend().name != "compiled":
        raise RuntimeError(f"the engine needs compiled kernels: {backend().why}")
    shapes = [jax.ShapeDtypeStruct((images, *x.shape[1:]), jnp.float32) for x in outputs]
    call = jax.ffi.ffi_call("jaxsparse_network", shapes, vmap_method="sequential")
    key = int.from_bytes(hashlib.sha256(program).digest()[:8], "little", signed=True)
    run = jax.custom_jvp(
        functools.partial(
            call,
            library=os.fspath(engine_library() or ""),
            key=np.int64(key),
            threads=np.int64(threads),
            batch=np.int64(images),
        )
    )
    run.defjvp(_no_gradient)
    return list(run(given_program, *given))


def _no_gradient(primals: Any, tangents: Any) -> NoReturn:
    raise ValueError("the engine runs inference alone and has no gradient; differentiate the model")


def _as(x: Any, dtype: Any) -> Any:
    """Returns an array in a dtype: XLA's operations take what they took when they were traced."""
    return x if getattr(x, "dtype", dtype) == dtype else jnp.asarray(x, dtype)
