"""The axes of kernels, read off the function that uses them.

The function is traced and its jaxpr walked. Each parameter's axes are followed through operations
that move, cut, join or scale it, until a product with data uses it. There `dot_general`, the
convolution or the ragged product says which axes it sums over.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxsparse.paths import leaves_by_path
from jaxsparse.tracing.axis_operations import (
    CONSTANT,
    OPERATIONS,
    Found,
    Source,
    Value,
    source_of,
    unknown,
)
from jaxsparse.tracing.axis_views import resized, view_of, without
from jaxsparse.tracing.jaxprs import Analysis, walk
from jaxsparse.types import KernelAxes, PyTree


def kernel_axes(forward: Callable[..., Any], params: PyTree, *inputs: Any) -> dict[str, KernelAxes]:
    """Returns the roles of every kernel's axes in the product that uses it.

    The result is exact if the way from a leaf to its product is known: through reshapes,
    transposes, slices, concatenation, lookups by index, scaling and masking, in `jit`, `vmap`,
    `scan`, `cond`, `checkpoint` and `shard_map`. The layers of a stack (`nn.scan`, `jax.vmap`) and
    experts that are looked up are a batch. Experts that all see the same data are outputs.

    Args:
      forward: function of (params, *inputs), such as
        `lambda params, x: model.apply({"params": params}, x)`. It is traced, never run.
      params: pytree of arrays or `jax.ShapeDtypeStruct`.
      *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      Axes by path, as `axes=` of `erk`, `n_of_m`, `summary` and others takes them. Leaves that take
      part in no product, or whose part is not known, are left out; `look_at_kernels` says why.

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
    """Returns the axes that `kernel_axes` returns, and why those of each other leaf are unknown.

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
    walk(closed, [*weights, *data], _Following(found))
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


class _Following(Analysis[Value]):
    """Follows the leaves through the operations that keep them in sight.

    Attributes:
      found: the record of products, and of why leaves are lost.
    """

    def __init__(self, found: Found):
        self.found = found

    def constant(self, atom: Any, value: Any) -> Value:
        del atom, value
        return CONSTANT

    def operation(self, eqn: Any, operands: list[Value]) -> Sequence[Value]:
        if not any(operand.views for operand in operands):
            return [Value({}, source_of(operands))] * len(eqn.outvars)
        return OPERATIONS.get(eqn.primitive.name, unknown)(eqn, operands, self.found)

    def either(self, choices: Sequence[Value]) -> Value:
        return functools.reduce(_agreed, choices)

    def enters(self, eqn: Any, operands: list[Value]) -> bool:
        """Not if no leaf is in sight: nothing can be found there."""
        return any(operand.views for operand in operands)

    def on_trial(self) -> "_Following":
        return _Following(Found(self.found.num_axes, {}, {}))

    def slice(self, x: Value) -> Value:
        return x._replace(views={path: without(view, (0,)) for path, view in x.views.items()})

    def stacked(self, x: Value, shape: tuple[int, ...]) -> Value:
        del shape
        self.found.lose([x], "an output of a scan")
        return x._replace(views={})

    def part(self, x: Value, shape: tuple[int, ...]) -> Value:
        return x._replace(views={path: resized(view, shape) for path, view in x.views.items()})

    def carried(self, before: list[Value], after: list[Value]) -> list[Value]:
        agreed = super().carried(before, after)
        if agreed != before:
            self.found.lose(before, "changed by a loop")
        return agreed


def _agreed(one: Value, other: Value) -> Value:
    views = {path: view for path, view in one.views.items() if other.views.get(path) == view}
    return Value(views, source_of([one, other]))
