"""Leaves that take their gradient as their next value, such as Flax's fp8 scales.

Flax keeps them in a collection of their own beside "params": the gradient that `jax.grad` returns
for them is no gradient but the new value (`flax.linen.fp8_ops`). No optimizer moves them, so its
state has slots for the other leaves alone.
"""

from collections.abc import Mapping

from jaxsparse.types import PyTree

OVERWRITTEN = "_overwrite_with_gradient"
"""The collection's name in Flax."""


def has_overwritten(tree: PyTree) -> bool:
    """Whether a tree of variables, of their gradients or masks, has leaves that are overwritten."""
    return isinstance(tree, Mapping) and OVERWRITTEN in tree


def trained_part(tree: PyTree) -> PyTree:
    """Returns what the optimizer moves: all, or the collection "params" beside what is overwritten.

    >>> trained_part({"params": {"kernel": 1.0}, "_overwrite_with_gradient": {"scale": 2.0}})
    {'kernel': 1.0}
    """
    return tree["params"] if has_overwritten(tree) else tree


def with_trained(variables: PyTree, grads: PyTree, trained: PyTree) -> PyTree:
    """Returns variables with new values: `trained`, and of what is overwritten its gradient."""
    if not has_overwritten(variables):
        return trained
    return type(variables)({"params": trained, OVERWRITTEN: grads[OVERWRITTEN]})
