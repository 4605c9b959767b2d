"""Views: the axes of a leaf in a value that is made from it by moving, cutting and joining.

A view has an entry for each axis of the value: the parts that the axis consists of, the slowest
first. A part has the leaf's axes that it comes from, and its size. A part that comes from no axis
was broadcast. A kernel (768, 12, 64) that is reshaped to (768, 768) has the view

    (((0,), 768),)    (((1,), 12), ((2,), 64))

so that another reshape takes it apart again as it was put together.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from jaxsparse.types import KernelAxes

Part: TypeAlias = tuple[frozenset[int], int]
View: TypeAlias = tuple[tuple[Part, ...], ...]
Shape: TypeAlias = tuple[int, ...]

_NONE: frozenset[int] = frozenset()


def view_of(shape: Shape) -> View:
    """Returns the view that a leaf has of itself."""
    return tuple(((frozenset({axis}), n),) for axis, n in enumerate(shape))


def transposed(view: View, order: Sequence[int]) -> View:
    """Returns the view with its axes in another order."""
    return tuple(view[axis] for axis in order)


def without(view: View, axes: Sequence[int]) -> View:
    """Returns the view without some axes of the value: of size 1, summed over, or picked from."""
    return tuple(parts for axis, parts in enumerate(view) if axis not in axes)


def with_axis(view: View, axis: int, size: int) -> View:
    """Returns the view with a new axis, which comes from no axis of the leaf."""
    return (*view[:axis], ((_NONE, size),), *view[axis:])


def resized(view: View, shape: Shape) -> View:
    """Returns the view of a value of the same rank: cut, padded, repeated or joined with others."""
    same = lambda parts, n: math.prod(size for _, size in parts) == n
    return tuple(
        parts if same(parts, n) else ((_axes_of(parts), n),)
        for parts, n in zip(view, shape, strict=True)
    )


def broadcast(view: View, shape: Shape, dims: Sequence[int]) -> View:
    """Returns the view after `lax.broadcast_in_dim`, whose axis `dims[i]` is axis i of the view."""
    new: list[tuple[Part, ...]] = [((_NONE, n),) for n in shape]
    for parts, axis in zip(view, dims, strict=True):
        if math.prod(size for _, size in parts) == shape[axis]:
            new[axis] = parts
    return tuple(new)


def reshaped(view: View, shape: Shape) -> View:
    """Returns the view after a reshape: parts are split, or merged if their edges do not meet.

    >>> kernel = view_of((6, 2, 4))
    >>> joined = reshaped(kernel, (6, 8))
    >>> reshaped(joined, (6, 2, 4)) == kernel
    True
    """
    if 0 in shape:
        return tuple(((_NONE, n),) for n in shape)
    rest = [part for parts in view for part in parts if part[1] != 1]
    new = []
    for n in shape:
        parts = []
        while n > 1:
            axes, size = rest.pop(0)
            while size % n and n % size:  # the edges of old and new axes do not meet
                more, factor = rest.pop(0)
                axes, size = axes | more, size * factor
            taken = min(n, size)
            parts.append((axes, taken))
            if taken < size:
                rest.insert(0, (axes, size // taken))
            n //= taken
        new.append(tuple(parts))
    return tuple(new)


def taken_by_index(view: View, dims: Sequence[int], offset: Sequence[int], shape: Shape) -> View:
    """Returns the view after a gather.

    Args:
      view: of the array that is read.
      dims: the array's axes that the indices run along; the result lacks them.
      offset: the axes of the result that the array's other axes become, in order.
      shape: of the result. Its axes that are not in `offset` are those of the indices, hence come
        from `dims`.
    """
    picked = functools.reduce(frozenset.union, (_axes_of(view[axis]) for axis in dims), _NONE)
    kept = dict(zip(offset, without(view, dims), strict=True))
    return resized(tuple(kept.get(i, ((picked, n),)) for i, n in enumerate(shape)), shape)


def merged(views: Sequence[View]) -> View:
    """Returns the view of an entry-by-entry function of values that all come from one leaf."""
    both = lambda one, other: tuple(_merged_axis(a, b) for a, b in zip(one, other, strict=True))
    return functools.reduce(both, views)


def covers(view: View) -> bool:
    """Whether every axis of the value comes from the leaf."""
    return all(axes for parts in view for axes, size in parts if size > 1)


def has_any(view: View) -> bool:
    """Whether any axis of the value comes from the leaf."""
    return any(axes for parts in view for axes, _ in parts)


def split_stack(view: View, axis: int, groups: int) -> View:
    """Returns the view with the slowest parts of an axis, `groups` places, as a new last axis.

    Only parts that are whole axes of the leaf are split off; the new axis is empty if none is.
    """
    stack, rest = [], list(view[axis])
    while len(rest) > 1 and groups > 1 and groups % rest[0][1] == 0:
        if rest[0][0] & _axes_of(rest[1:]):
            break
        groups //= rest[0][1]
        stack.append(rest.pop(0))
    return (*view[:axis], tuple(rest), *view[axis + 1 :], tuple(stack))


def axes_in_product(view: View, roles: Sequence[str], num_axes: int) -> KernelAxes | str:
    """Returns the role of each of the leaf's axes in a product, or why an axis has several.

    Args:
      view: of an operand of the product.
      roles: a field of `KernelAxes` for each axis of the operand.
      num_axes: of the leaf. An axis that the operand lacks, since it was indexed, is "batch".
    """
    found: dict[int, set[str]] = {axis: set() for axis in range(num_axes)}
    for parts, role in zip(view, roles, strict=True):
        for axes, _ in parts:
            for axis in axes:
                found[axis].add(role)
    for axis, names in found.items():
        if len(names) > 1:
            return f"its axis {axis} is partly {' and partly '.join(sorted(names))}"
    chosen = lambda name: tuple(axis for axis in found if (found[axis] or {"batch"}) == {name})
    return KernelAxes(*map(chosen, KernelAxes._fields))


def _axes_of(parts: Sequence[Part]) -> frozenset[int]:
    return functools.reduce(frozenset.union, (axes for axes, _ in parts), _NONE)


def _merged_axis(one: tuple[Part, ...], other: tuple[Part, ...]) -> tuple[Part, ...]:
    if one == other or not _axes_of(other):
        return one
    if not _axes_of(one):
        return other
    return ((_axes_of(one) | _axes_of(other), math.prod(size for _, size in one)),)


MOVES: dict[str, Callable[[View, Any, Shape], View]] = {
    "reshape": lambda v, p, shape: reshaped(
        v if p["dimensions"] is None else transposed(v, p["dimensions"]), shape
    ),
    "transpose": lambda v, p, shape: transposed(v, p["permutation"]),
    "broadcast_in_dim": lambda v, p, shape: broadcast(v, shape, p["broadcast_dimensions"]),
    "squeeze": lambda v, p, shape: without(v, p["dimensions"]),
    "unstack": lambda v, p, shape: without(v, (p["axis"],)),
    "all_gather": lambda v, p, shape: resized(
        v if p["tiled"] else with_axis(v, p["all_gather_dimension"], 1), shape
    ),
    "gather": lambda v, p, shape: taken_by_index(
        v,
        (
            *p["dimension_numbers"].collapsed_slice_dims,
            *p["dimension_numbers"].operand_batching_dims,
        ),
        p["dimension_numbers"].offset_dims,
        shape,
    ),
    **dict.fromkeys(
        "slice dynamic_slice pad split tile".split(),
        lambda v, p, shape: resized(v, shape),
    ),
    **dict.fromkeys("rev cumsum cumprod cummax cummin cumlogsumexp".split(), lambda v, p, shape: v),
    **dict.fromkeys(
        """argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
        reduce_xor""".split(),
        lambda v, p, shape: without(v, p["axes"]),
    ),
}
"""By the name of the primitive: (view, its params, shape of the result) -> view."""
