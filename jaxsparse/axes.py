"""The roles of a kernel's axes: inputs, outputs, taps of a convolution, or kernels in a stack.

A shape alone does not tell: (768, 12, 64) may be the query of an attention, a matrix of 768 inputs
and 768 outputs, or a convolution of 768 taps. `kernel_axes` finds the axes by tracing the function
that uses the kernel. Without tracing, path and shape decide, by the first of these rules that fits:

    leaf                                rank   axes
    weight, weight_ih, ...              2+     (out, in, taps ...), as in Equinox and PyTorch
    query, key, value, q, k_proj, ...   3+     (stack ..., in, heads, features)
    qkv, kv                             3+     the same; or (in, 3 or 2, heads, features)
    out, o_proj, attn/c_proj, ...       3      (heads, features, out)
    DenseGeneral_0, LinearGeneral, ...  3+     (in, out ...), or (in ..., out) if axis 0 is not
                                               larger than axis 1
    all others, as in Flax              1+     (taps ..., in, out)

The name is that of the leaf, or of its module if the leaf is called "kernel" or "w". A convolution
of rank 3 called "query" is recognised, because it has fewer taps than channels. One called "out"
needs a rule (see `axes_by_rules`) or tracing.
"""

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from jaxsparse.paths import first_matches, leaves_by_path
from jaxsparse.types import KernelAxes, PyTree

AxesByPath: TypeAlias = Mapping[str, KernelAxes]
KeptAxes: TypeAlias = tuple[tuple[str, KernelAxes], ...]

_LAYER = r"(_\d+)?(/(kernel|w))?$"
_OUTPUTS_FIRST = re.compile(r"(^|[/.])weight(_\w+)?$")
_TO_HEADS = re.compile(
    rf"(^|/)((to|w|c)_?)?(q|k|v|query|key|value|(?P<joint>qkv|kv))(_?proj(ection)?)?{_LAYER}",
    re.IGNORECASE,
)
_FROM_HEADS = re.compile(
    rf"(^|/)((to|w|c)_?)?(o|out|output)(_?proj(ection)?)?{_LAYER}"
    rf"|(attn|attention|mha)[^/]*/(c_)?proj{_LAYER}",
    re.IGNORECASE,
)
_GENERAL = re.compile(rf"(^|/)\w*(dense|linear)_?general{_LAYER}", re.IGNORECASE)
_STACK_INDEX = re.compile(r"(\[\d+\])+$")


def default_axes(path: str, shape: Sequence[int]) -> KernelAxes:
    """Returns the axes of a leaf by the rules at the top of this module.

    Args:
      path: path of the leaf. An index such as "[3]" at its end (one layer of a stack) is ignored.
      shape: shape of the leaf. A vector has only outputs; a scalar has no axes.

    >>> default_axes("attn/query/kernel", (768, 12, 64))
    KernelAxes(inputs=(0,), outputs=(1, 2), window=(), batch=())
    >>> default_axes("attn/out/kernel", (12, 64, 768))
    KernelAxes(inputs=(0, 1), outputs=(2,), window=(), batch=())
    >>> default_axes("conv/kernel", (3, 3, 16, 32))
    KernelAxes(inputs=(2,), outputs=(3,), window=(0, 1), batch=())
    """
    path, n = _STACK_INDEX.sub("", path), len(shape)
    if n >= 2 and _OUTPUTS_FIRST.search(path):
        return KernelAxes((1,), (0,), tuple(range(2, n)))
    if n >= 3:
        if (match := _TO_HEADS.search(path)) and (
            at := _input_of_heads(match["joint"], shape)
        ) >= 0:
            return KernelAxes((at,), tuple(range(at + 1, n)), (), tuple(range(at)))
        if n == 3 and _FROM_HEADS.search(path):
            return KernelAxes((0, 1), (2,))
        if _GENERAL.search(path):
            at = 1 if shape[0] > shape[1] else n - 1
            return KernelAxes(tuple(range(at)), tuple(range(at, n)))
    if n < 2:
        return KernelAxes((), tuple(range(n)))
    return KernelAxes((n - 2,), (n - 1,), tuple(range(n - 2)))


def _input_of_heads(joint: str | None, shape: Sequence[int]) -> int:
    """The axis of the inputs in (..., in, heads, features), or -1 for a convolution."""
    n = len(shape)
    if joint and n >= 4 and shape[-3] == len(joint):
        return n - 4
    return n - 3 if shape[-3] >= shape[-2] else -1


def axes_of(path: str, shape: Sequence[int], axes: AxesByPath | KeptAxes = ()) -> KernelAxes:
    """Returns the axes of a leaf, in rising order and not negative: given ones, or the default.

    Args:
      path: path of the leaf. A path that ends in an index such as "[3]" is one layer of a stack, as
        `stacked` makes it; its axes are those of the stack without the leading ones.
      shape: shape of the leaf or layer.
      axes: axes by path, as `kernel_axes` returns them; leaves without an entry use `default_axes`.

    Raises:
      ValueError: the given axes do not name each axis of the leaf once.
    """
    given = dict(axes)
    found = given.get(path)
    if found is None and (found := given.get(_STACK_INDEX.sub("", path))) is not None:
        num = sum(map(len, found)) - len(shape)
        whole = [_rising(part, len(shape) + num) for part in found]
        found = KernelAxes(*(tuple(i - num for i in part if i >= num) for part in whole))
    return default_axes(path, shape) if found is None else _checked(path, shape, found)


def kept_axes(axes: AxesByPath | None) -> KeptAxes:
    """Returns axes by path as a tuple, which is hashable; an empty one for None.

    Raises:
      ValueError: an entry is no `KernelAxes` of whole numbers; names its path.
    """
    kept = []
    for path, given in sorted((axes or {}).items()):
        try:
            kept.append((path, KernelAxes(*(tuple(map(operator.index, part)) for part in given))))
        except (TypeError, ValueError):
            raise ValueError(f"axes at {path}: {given!r} must be KernelAxes") from None
    return tuple(kept)


def axes_by_rules(rules: Sequence[tuple[str, KernelAxes]], params: PyTree) -> dict[str, KernelAxes]:
    """Returns axes by path, as `axes=` takes them, for the leaves that match a rule.

    Args:
      rules: (path regex, axes) pairs; for each leaf the first regex found in its path decides.
        Negative axes serve leaves of several ranks: `KernelAxes((-2,), (-1,), (), (0,))` is a stack
        of matrices.
      params: any pytree of arrays or `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: a rule is the first match of no leaf, or does not name each axis of its leaf once.

    >>> mixer = {"tokens": {"kernel": np.zeros((8, 4, 16))}, "head": {"kernel": np.zeros((16, 10))}}
    >>> axes_by_rules([("^tokens", KernelAxes((0,), (2,), (), (1,)))], mixer)
    {'tokens/kernel': KernelAxes(inputs=(0,), outputs=(2,), window=(), batch=(1,))}
    """
    leaves = leaves_by_path(params)
    first = first_matches([regex for regex, _ in rules], leaves, name="axes rule")
    return {
        path: _checked(path, np.shape(leaves[path]), rules[i][1])
        for path, i in first.items()
        if i is not None
    }


def num_places(shape: Sequence[int], axes: Iterable[int]) -> int:
    """Returns the product of some axes' sizes, such as the number of outputs of a query.

    >>> num_places((768, 12, 64), (1, 2))
    768
    """
    return math.prod(shape[axis] for axis in axes)


def fan_in(shape: Sequence[int], axes: KernelAxes) -> int:
    """Returns how many weights each output sums over.

    >>> fan_in((3, 3, 16, 32), default_axes("conv/kernel", (3, 3, 16, 32)))
    144
    """
    return num_places(shape, (*axes.inputs, *axes.window))


def _rising(part: Iterable[int], n: int) -> tuple[int, ...]:
    return tuple(sorted(axis % n if -n <= axis < n else axis for axis in part))


def _checked(path: str, shape: Sequence[int], axes: Any) -> KernelAxes:
    n = len(shape)
    found = KernelAxes(*(_rising(part, n) for part in axes))
    if sorted(axis for part in found for axis in part) != [*range(n)]:
        raise ValueError(
            f"axes at {path} {tuple(shape)}: {tuple(axes)} must name each of its {n} axes once"
        )
    return found
