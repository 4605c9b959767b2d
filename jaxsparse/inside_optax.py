"""Inspection of optax transformations: which optimizers they contain, which arguments they take.

optax composes closures and keeps no record of what it composed. Some optimizers are known by the
class of their state, the others by the functions that their closures hold.
"""

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from jaxsparse.types import PyTree

# Optimizers whose slots can be found, but that would break silently or obscurely with masks. They
# are known by the class of their state, or by the function that makes them if others share it.
_STATES = {
    optax.LookaheadState: "optax.lookahead steps two copies of params; average them outside (EMA)",
}
_EARLY = (
    "divides by its second moment before it has seen a gradient, so that a weight that an event "
    "grows is thrown far away; use "
)
_ACPROP = f"optax.contrib.acprop {_EARLY}optax.adabelief or optax.contrib.adopt"
_MAKERS = {
    "acprop": _ACPROP,  # optax.inject_hyperparams holds only this
    "scale_by_acprop": _ACPROP,
    "scale_by_adopt": f"optax.contrib.adopt(use_clipping=False) {_EARLY}use_clipping=True",
}


def is_hole(node: Any) -> bool:
    """Returns whether a node of a state stands for a leaf or subtree that the optimizer skips.

    `optax.masked`, `optax.partition` and Muon put such a `MaskedNode` in its place.
    """
    return isinstance(node, optax.MaskedNode)


def why_refused(tx: optax.GradientTransformation, state: PyTree) -> str | None:
    """Returns why this optimizer cannot train with masks, or None if it can.

    Args:
      tx: any optax transformation.
      state: the state that its `init` returned.
    """
    refused = tuple(_STATES)
    for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, refused)):
        if isinstance(node, refused):
            return _STATES[type(node)]
    for function in _functions(tx):
        maker = function.__qualname__.removesuffix(".<locals>.update_fn")
        # ADOPT's clipping keeps the first steps small.
        if maker in _MAKERS and not _held(function).get("use_clipping"):
            return _MAKERS[maker]
    return None


def update_with_masks(tx: optax.GradientTransformation) -> Callable[..., tuple[PyTree, PyTree]]:
    """Returns `tx.update` as a function that takes any extra arguments, masks among them.

    Masks are passed on unless an update inside `tx` has arguments of its own and takes no others,
    such as that of `optax.contrib.sam` (optax asks for `**extra_args`). Other extra arguments are
    passed on as optax does it, and to anything that takes `**`, such as `optax.MultiSteps`.

    Args:
      tx: any optax transformation.
    """
    takes_any = _takes(tx.update, "masks")
    takes_extra = takes_any or isinstance(tx, optax.GradientTransformationExtraArgs)
    takes_masks = takes_any and all(_takes(f, "masks") for f in _functions(tx) if _has_own(f))

    def update(
        updates: PyTree, state: PyTree, params: PyTree, *, masks: PyTree, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        handed = ({"masks": masks} if takes_masks else {}) | (extra if takes_extra else {})
        return tx.update(updates, state, params, **handed)

    return update


def _functions(tx: optax.GradientTransformation) -> Iterator[types.FunctionType]:
    """Yields all functions inside a transformation: in closures, methods and partials."""
    waiting: list[Any] = [tx.init, tx.update]
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, types.FunctionType):
            yield part
            waiting.extend(_held(part).values())
        elif isinstance(part, types.MethodType):
            waiting.extend((part.__func__, *getattr(part.__self__, "__dict__", {}).values()))
        elif isinstance(part, functools.partial):
            waiting.extend((part.func, *part.args, *part.keywords.values()))
        elif isinstance(part, list | tuple):
            waiting.extend(part)
        elif isinstance(part, dict):
            waiting.extend(part.values())
        elif callable(part) and not isinstance(part, type):
            waiting.append(getattr(part, "__wrapped__", None))  # inside jit
            waiting.extend(getattr(part, "__dict__", {}).values())


def _held(function: types.FunctionType) -> dict[str, Any]:
    """The variables of a closure by name."""
    held = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            held[name] = cell.cell_contents
    return held


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # Python cannot inspect it
        return []


def _takes(function: Callable[..., Any], name: str) -> bool:
    return any(p.kind is p.VAR_KEYWORD or p.name == name for p in _parameters(function))


def _has_own(function: Callable[..., Any]) -> bool:
    """Returns whether a function is an update that has extra arguments of its own."""
    parameters = _parameters(function)
    first = [p.name for p in parameters[:2]]
    return first == ["updates", "state"] and any(p.kind is p.KEYWORD_ONLY for p in parameters)
