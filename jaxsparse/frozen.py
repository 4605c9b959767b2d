"""Leaves that the optimizer never moves, such as a frozen backbone, and methods without them.

Masks of a leaf that is not trained must not change: a weight that an event grows there would stay
0. A leaf is frozen if its update is 0 for any gradient, as with `optax.set_to_zero` under
`optax.partition`. This is read off the optimizer's jaxpr: nothing is run.
"""

import re
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core

from jaxsparse.method import Method, remade
from jaxsparse.overwritten import has_overwritten, trained_part
from jaxsparse.paths import leaf_paths, listed, prunable_paths
from jaxsparse.tracing.jaxprs import Analysis, walk
from jaxsparse.types import PyTree, Rules

# Operations that give 0 if all their operands are 0, and if one of them is.
_ALL = frozenset(
    """add add_any broadcast_in_dim concatenate convert_element_type copy max min neg pad
    reduce_sum reshape select_n slice squeeze stop_gradient sub transpose""".split()
)
_ANY = frozenset(("mul", "and"))


def frozen_paths(tx: optax.GradientTransformation, params: PyTree) -> list[str]:
    """Returns the paths of the leaves whose update is 0 whatever gradient and state are.

    Args:
      tx: any optax transformation. Its update is traced, with a `value` of 0 if it asks for one. No
        leaf counts as frozen if it asks for more.
      params: any pytree of arrays or `jax.ShapeDtypeStruct`.

    >>> labels = {"backbone": "frozen", "head": "trained"}
    >>> tx = optax.partition({"trained": optax.sgd(0.1), "frozen": optax.set_to_zero()}, labels)
    >>> frozen_paths(tx, {"backbone": jnp.ones(3), "head": jnp.ones(2)})
    ['backbone']
    """
    trained = trained_part(params)
    prefix = "params/" if has_overwritten(params) else ""
    shape = lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x))
    shapes = jax.tree.map(shape, trained)
    update = optax.with_extra_args_support(tx).update
    for extra in ({}, {"value": jnp.zeros(())}):
        try:
            state = jax.eval_shape(tx.init, shapes)
            traced = jax.make_jaxpr(lambda *args, extra=extra: update(*args, **extra)[0])
            closed = traced(shapes, state, shapes)
        except Exception:  # any optimizer may raise anything for arguments that it lacks
            continue
        zeros = walk(closed, [False] * len(closed.jaxpr.invars), _Zeros())
        return [
            prefix + path for path, zero in zip(leaf_paths(trained), zeros, strict=True) if zero
        ]
    return []


def leave_out(method: Method, frozen: Collection[str], params: PyTree) -> Method:
    """Returns the method without the leaves that are frozen.

    Masks of frozen leaves stay all True. These leaves are neither pruned nor counted in the
    sparsity, which the method shares out among the other leaves. `TrainState.create` and
    `sparse_optimizer` do this with `frozen_paths(tx, params)`; call it to plan such a run. A method
    that keeps given masks (`static(masks=...)`) is returned as it is.

    Args:
      method: any method.
      frozen: paths of leaves; leaves that the method does not prune anyway change nothing.
      params: any pytree of arrays or `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: all leaves that the method may prune are frozen.
    """
    if method.recipe is None or not frozen:
        return method
    if method.recipe.masks is not None and not method.timetable.events:
        return method
    paths = prunable_paths(params, method.prunable)
    left_out = [path for path in paths if path in frozen]
    if not left_out:
        return method
    if len(left_out) == len(paths):
        raise ValueError(
            f"the optimizer moves none of the prunable leaves ({listed(paths)}), so there is "
            "nothing to train sparsely"
        )
    others = [path for path in leaf_paths(params) if path not in left_out]
    rules = _without(method.prunable, left_out, others)
    return remade(method, method.recipe._replace(prunable=rules), prunable=rules)


def _without(rules: Rules | None, frozen: Sequence[str], others: Sequence[str]) -> Rules:
    """Returns the rules after one that takes out the frozen leaves, less rules for these alone."""
    first = (f"^({'|'.join(map(re.escape, frozen))})$", False)
    if rules is None:
        return (first, (r"", None))
    needed = {
        next((i for i, (pattern, _) in enumerate(rules) if re.search(pattern, path)), None)
        for path in others
    }
    return (first, *(rule for i, rule in enumerate(rules) if i in needed))


class _Zeros(Analysis[bool]):
    """Whether a value is surely 0 everywhere."""

    def constant(self, atom: Any, value: Any) -> bool:
        return isinstance(atom, core.Literal) and not np.any(np.asarray(value))

    def operation(self, eqn: Any, operands: list[bool]) -> Sequence[bool]:
        name = eqn.primitive.name
        if name in _ALL:
            return [all(operands[name == "select_n" :])]
        return [name in _ANY and any(operands)] * len(eqn.outvars)

    def either(self, choices: Sequence[bool]) -> bool:
        return all(choices)
