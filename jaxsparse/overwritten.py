"""Leaves whose gradient is their next value, such as Flax's fp8 scales.

Flax keeps them in their own collection beside "params". For these leaves `jax.grad` returns the new
value instead of a gradient (`flax.linen.fp8_ops`). The optimizer does not move them, so its state
has slots for the other leaves only.
"""

from collections.abc import Mapping

from jaxsparse.types import PyTree

OVERWRITTEN = "_overwrite_with_gradient"
"""The collection's name in Flax."""


def has_overwritten(tree: PyTree) -> bool:
    """Returns whether a tree of variables, gradients or masks has leaves that are overwritten."""
    return isinstance(tree, Mapping) and OVERWRITTEN in tree


def trained_part(tree: PyTree) -> PyTree:
    """Returns what the optimizer moves: the whole tree, or only "params" if it has such leaves.

    >>> trained_part({"params": {"kernel": 1.0}, "_overwrite_with_gradient": {"scale": 2.0}})
    {'kernel': 1.0}
    """
    return tree["params"] if has_overwritten(tree) else tree


def with_trained(variables: PyTree, grads: PyTree, trained: PyTree) -> PyTree:
    """Returns new variables: `trained`, and the gradients of the leaves that are overwritten."""
    if not has_overwritten(variables):
        return trained
    return type(variables)({"params": trained, OVERWRITTEN: grads[OVERWRITTEN]})
