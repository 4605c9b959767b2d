"""Calls of kernels that only programs for one CPU make.

The compiler cannot look into a kernel; on a mesh it would gather the kernel's inputs. The number of
devices of a program is known when it is lowered, not when it is traced. So the trace has one
operation that stands for the choice between a kernel and equal code in JAX. The choice is made when
the operation is lowered, and the other alternative is not traced.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

from jaxsparse.counting import count_true
from jaxsparse.kernels import load

Result = TypeVar("Result")

_choice = Primitive("jaxsparse_on_one_cpu")
_choice.multiple_results = True


def on_one_cpu(compiled: Callable[..., Result], plain: Callable[..., Result], *args: Any) -> Result:
    """Calls one of two equal functions.

    Args:
      compiled: calls a kernel; used by programs for one CPU if there are kernels.
      plain: the same in JAX; used by all other programs and under `vmap`. Exported programs use it
        too, as they may run on a machine without kernels. It is called when the program is lowered,
        so it must not close over arrays of the trace.
      *args: pytrees of arrays. Gradients through the call are 0.

    Returns:
      The result of the function.
    """
    leaves, tree = jax.tree.flatten(args)
    if any(_on_mesh(x) for x in leaves):
        return plain(*args)
    kernel, results = jax.make_jaxpr(compiled, return_shape=True)(*args)
    flat = lambda *leaves: jax.tree.leaves(plain(*tree.unflatten(leaves)))
    stopped = map(lax.stop_gradient, leaves)
    found = _choice.bind(*stopped, compiled=kernel, plain=flat, asking=_asking_for_devices())
    return jax.tree.structure(results).unflatten(found)


@functools.cache
def _asking_for_devices() -> ClosedJaxpr:
    """A jaxpr that depends on the devices, which makes JAX tell these to the lowering.

    JAX looks for such operations in the parameters of all operations. `plain` may have some, see
    `counting`, but it is not traced before it is needed.
    """
    return jax.make_jaxpr(count_true)(jax.ShapeDtypeStruct((1,), jnp.bool_))


def _on_mesh(x: Any) -> bool:
    """Whether an array's type has a mesh: inside `shard_map`, or with explicit axes."""
    return not jax.typeof(x).sharding.mesh.empty


@_choice.def_impl
def _run(*args: jax.Array, plain: Callable, **params: Any) -> list[jax.Array]:
    # With disable_jit nothing is lowered, and `jit` below would call this function again.
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return plain(*args)
    return jax.jit(lambda *args: _choice.bind(*args, plain=plain, **params))(*args)


@_choice.def_abstract_eval
def _types(*args: Any, compiled: ClosedJaxpr, **params: Any) -> list[Any]:
    return compiled.out_avals


def _batched(args: Any, axes: Any, *, plain: Callable, **params: Any) -> tuple[Any, list[int]]:
    results = jax.vmap(plain, in_axes=tuple(axes))(*args)
    return results, [0] * len(results)


def _lower_plain(
    context: mlir.LoweringRuleContext, *args: Any, plain: Callable, **params: Any
) -> Any:
    return mlir.lower_fun(plain)(context, *args)


def _lower_on_cpu(
    context: mlir.LoweringRuleContext,
    *args: Any,
    compiled: ClosedJaxpr,
    plain: Callable,
    **params: Any,
) -> Any:
    module = context.module_context
    devices, exported = module.axis_context, module.lowering_parameters.for_export
    alone = isinstance(devices, mlir.ShardingContext) and devices.num_devices == 1
    if alone and not exported and load.backend().name == "compiled":
        return mlir.lower_fun(jaxpr_as_fun(compiled))(context, *args)
    return mlir.lower_fun(plain)(context, *args)


batching.primitive_batchers[_choice] = _batched
mlir.register_lowering(_choice, _lower_plain)
mlir.register_lowering(_choice, _lower_on_cpu, platform="cpu")
