"""The axes of kernels, read off the function that uses them.

The function is traced and its jaxpr walked. Each parameter's axes are followed through whatever
moves, cuts, joins or scales it to the product with data that uses it, and there `dot_general`, the
convolution or the ragged product says which axes it sums over.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from jaxsparse.paths import leaves_by_path
from jaxsparse.tracing.axis_operations import (
    CONSTANT,
    OPERATIONS,
    Found,
    Operation,
    Source,
    Value,
    source_of,
    unknown,
)
from jaxsparse.tracing.axis_views import resized, view_of, without
from jaxsparse.tracing.jaxprs import branches, opened, scan_parts, settled, walk
from jaxsparse.types import KernelAxes, PyTree


def kernel_axes(forward: Callable[..., Any], params: PyTree, *inputs: Any) -> dict[str, KernelAxes]:
    """Returns what the axes of every kernel are in the product that uses it.

    Exact, as far as a leaf's way to its product is known: through reshapes, transposes, slices,
    concatenation, lookups by index, scaling and masking, in `jit`, `vmap`, `scan`, `cond`,
    `checkpoint` and `shard_map`. The layers of a stack (`nn.scan`, `jax.vmap`) and experts that
    are looked up are its batch. Experts that all see the same data are outputs, as they are there.

    Args:
      forward: function of (params, *inputs), such as
        `lambda params, x: model.apply({"params": params}, x)`. It is traced, never run.
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      Axes by path, as `axes=` of `erk`, `n_of_m`, `summary` and others takes them; without the
      leaves that take part in no product, or whose part is not known: `look_at_kernels` says why.

    >>> import jax.numpy as jnp
    >>> forward = lambda p, x: jnp.einsum("bi,hio->bho", x, p["kernel"]) + p["bias"]
    >>> params = {"kernel": jnp.ones((4, 8, 2)), "bias": jnp.ones((1, 4, 2))}
    >>> kernel_axes(forward, params, jnp.ones((1, 8)))
    {'kernel': KernelAxes(inputs=(1,), outputs=(0, 2), window=(), batch=())}
    """
    return look_at_kernels(forward, params, *inputs)[0]


def look_at_kernels(
    forward: Callable[..., Any], params: PyTree, *inputs: Any
) -> tuple[dict[str, KernelAxes], dict[str, str]]:
    """Returns what `kernel_axes` does, and of every other leaf why its axes are not known.

    >>> forward = lambda p, x: (x @ p["tied"]) @ p["tied"].T + p["bias"]
    >>> params = {"tied": np.ones((4, 8)), "bias": np.ones((1, 4))}
    >>> look_at_kernels(forward, params, np.ones((1, 4)))[1]["tied"]
    'used in more than one way: inputs (0,), outputs (1,); inputs (1,), outputs (0,)'
    """
    leaves = {path: view_of(np.shape(x)) for path, x in leaves_by_path(params).items()}
    closed = jax.make_jaxpr(forward)(params, *inputs)
    weights = [Value({path: view}, Source.WEIGHTS) for path, view in leaves.items()]
    data = [Value({}, Source.DATA)] * (len(closed.jaxpr.invars) - len(weights))
    found = Found({path: len(view) for path, view in leaves.items()}, {}, {})
    _walk(closed.jaxpr, [*weights, *data], found)
    axes, others = {}, {}
    for path in leaves:
        uses = list(found.uses.get(path, {}))
        if not uses:
            others[path] = found.others.get(path, "takes part in no product")
        elif len(uses) > 1:
            others[path] = "used in more than one way: " + "; ".join(map(_written, uses))
        elif isinstance(uses[0], KernelAxes):
            axes[path] = uses[0]
        else:
            others[path] = uses[0]
    return axes, others


def _written(use: KernelAxes | str) -> str:
    if isinstance(use, str):
        return use
    return ", ".join(f"{name} {axes}" for name, axes in use._asdict().items() if axes)


def _walk(jaxpr: core.Jaxpr, inputs: Sequence[Value], found: Found) -> list[Value]:
    return walk(jaxpr, inputs, functools.partial(_operation, found), lambda _, value: CONSTANT)


def _operation(found: Found, eqn: Any, operands: list[Value]) -> list[Value]:
    if not any(operand.views for operand in operands):
        return [Value({}, source_of(operands))] * len(eqn.outvars)
    name = eqn.primitive.name
    return (OPERATIONS.get(name) or _CONTROL.get(name) or unknown)(eqn, operands, found)


def _cond(eqn: Any, operands: list[Value], found: Found) -> list[Value]:
    run = lambda branch, inputs: _walk(branch, inputs, found)
    return branches(eqn, operands, run, _agreed)


def _scan(eqn: Any, operands: list[Value], found: Found) -> list[Value]:
    num_constants, num_carry = scan_parts(eqn)
    inside = [
        x._replace(views={p: without(v, (0,)) for p, v in x.views.items()})
        for x in operands[num_constants + num_carry :]
    ]
    first = [*operands[: num_constants + num_carry], *inside]
    carry, others = _loop(opened(eqn.params["jaxpr"]), first, num_constants, num_carry, found)
    found.lose(others, "an output of a scan")
    return [*carry, *(x._replace(views={}) for x in others)]


def _while(eqn: Any, operands: list[Value], found: Found) -> list[Value]:
    body, num_constants = opened(eqn.params["body_jaxpr"]), eqn.params["body_nconsts"]
    first = operands[eqn.params["cond_nconsts"] :]
    return _loop(body, first, num_constants, len(first) - num_constants, found)[0]


def _loop(
    body: core.Jaxpr, first: list[Value], num_constants: int, num_carry: int, found: Found
) -> tuple[list[Value], list[Value]]:
    """Walks the body with what is true of the carry in every turn; returns it and other outputs."""
    end = num_constants + num_carry
    before, carry, after = first[:num_constants], first[num_constants:end], first[end:]
    turn = lambda carry: _walk(body, [*before, *carry, *after], Found(found.num_axes, {}, {}))
    settled_carry = settled(carry, lambda carry: turn(carry)[:num_carry], _agreed)
    if settled_carry != carry:
        found.lose(carry, "changed by a loop")
    outputs = _walk(body, [*before, *settled_carry, *after], found)
    return settled_carry, outputs[num_carry:]


def _agreed(choices: Sequence[Value]) -> Value:
    first, *others = choices
    views = {
        path: view
        for path, view in first.views.items()
        if all(other.views.get(path) == view for other in others)
    }
    return Value(views, source_of(choices))


def _shard_map(eqn: Any, operands: list[Value], found: Found) -> list[Value]:
    """The body sees one device's part of each array."""
    body = opened(eqn.params["jaxpr"])
    fitted = lambda x, var: x._replace(
        views={p: resized(v, var.aval.shape) for p, v in x.views.items()}
    )
    outputs = _walk(body, list(map(fitted, operands, body.invars)), found)
    return list(map(fitted, outputs, eqn.outvars))


_CONTROL: dict[str, Operation] = {
    "cond": _cond,
    "scan": _scan,
    "while": _while,
    "shard_map": _shard_map,
}
