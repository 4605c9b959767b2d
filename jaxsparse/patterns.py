"""Patterns, the structures that a leaf's mask can have: N:M, blocks, whole channels.

    method = jaxsparse.with_pattern(jaxsparse.rigl(sparsity=0.5, ...), jaxsparse.n_of_m(2, 4))

A pattern cuts a leaf into groups of equal size. Every group of N:M has exactly n active entries,
so the leaf's density is n/m and entries move within their group. Blocks and channels are active as
a whole or not at all: each is one big weight, whose score is the sum of its entries' scores (the L1
norm, if the score is |w|).

The cut follows the role of each axis in the leaf's product, which `axes=` says or the rules of
`jaxsparse.axes`. An axis that is given as a number is that axis of every leaf.

For a pattern of your own, write `Pattern(name, cut)` with a function from a shape to `Groups`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from jaxsparse.axes import AxesByPath, KeptAxes, axes_of, kept_axes, num_places
from jaxsparse.checks import check_whole
from jaxsparse.comparable import comparable
from jaxsparse.types import Groups
from jaxsparse.units import split_sides

CutLeaf: TypeAlias = Callable[[str, tuple[int, ...]], Groups]


class Pattern(NamedTuple):
    """A structure that masks can have.

    Attributes:
      name: in the names of methods and in messages.
      cut: shape of a leaf -> its groups; a ValueError says why a shape cannot be cut. Groups with
        `num_active` are N:M, which fixes the leaf's density.
      cut_leaf: (path, shape) of a leaf -> its groups, for a cut that depends on the role of its
        axes; None uses `cut`.
    """

    name: str
    cut: Callable[[tuple[int, ...]], Groups]
    cut_leaf: CutLeaf | None = None

    def groups(self, path: str, shape: tuple[int, ...]) -> Groups:
        """Returns the groups of a leaf."""
        return self.cut(shape) if self.cut_leaf is None else self.cut_leaf(path, shape)


PatternRules: TypeAlias = Sequence[tuple[str, Pattern | None]]


def n_of_m(n: int, m: int, axis: int | None = None, *, axes: AxesByPath | None = None) -> Pattern:
    """N:M: exactly n of every m neighbours along an axis are active. Hardware takes 2:4.

    Args:
      n: active entries of a group, at least 1 and below m.
      m: entries of a group; the leaf's size along the axis is a multiple of it. A selection
        compares each entry with the m of its group.
      axis: as in NumPy, any axis that the leaf has. None, the default, is the inputs, along which
        products are added up: axis -2 of Flax's dense and convolution kernels; axis 0 of an
        attention's query, (in, heads, features); axes 0 and 1, joined, of an attention's output,
        (heads, features, out); axis 1 of Equinox's and PyTorch's weights. Groups of a convolution
        lie within a tap.
      axes: the axes of leaves by path, from `kernel_axes` or by hand; leaves without an entry go by
        the rules of `jaxsparse.axes`.

    Raises:
      ValueError: n and m are not whole numbers with 0 < n < m, or the axis is not a whole number.

    Reference: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (2:4); Zhou et al.,
    "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021.

    >>> n_of_m(2, 4).cut((3, 3, 8, 16))
    Groups(pattern='2:4', split=(3, 3, 2, 4, 16), axes=(3,), num_active=2)
    >>> n_of_m(2, 4).groups("attn/out/kernel", (12, 64, 768))
    Groups(pattern='2:4', split=(192, 4, 768), axes=(1,), num_active=2)
    """
    n, m = (check_whole("n_of_m:", x, 1) for x in (n, m))
    if n >= m:
        raise ValueError(f"n_of_m({n}, {m}): n must be at least 1 and below m")
    if axis is not None:
        axis = check_whole("n_of_m: axis", axis)
    name = f"{n}:{m}" if axis in (None, -2) else f"{n}:{m}({axis})"
    return _pattern(name, _n_of_m(name, n, m, axis, kept_axes(axes)))


@comparable
def _n_of_m(name: str, n: int, m: int, axis: int | None, axes: KeptAxes) -> CutLeaf:
    def cut_leaf(path: str, shape: tuple[int, ...]) -> Groups:
        inputs = axes_of(path, shape, axes).inputs if axis is None else (_axis(axis, shape),)
        split, at = split_sides(shape, [(inputs, m)])
        if not at:
            size = num_places(shape, inputs)
            where = [i - len(shape) for i in inputs] if axis is None else [axis]
            raise ValueError(
                f"its size {size} along axis {', '.join(map(str, where))} is no multiple of {m}"
                if inputs
                else "it has no axis of inputs"
            )
        return Groups(name, split, at, n)

    return cut_leaf


def block(
    shape: tuple[int, int] | int,
    columns: int | None = None,
    *,
    axes: AxesByPath | None = None,
) -> Pattern:
    """Blocks of rows x columns, each active as a whole or not at all.

    A leaf is seen as a matrix, inputs and taps by outputs: a dense kernel (in, out) as it is, a
    convolution (height, width, in, out) as the (height * width * in, out) matrix of im2col. Rows
    are in the leaf's own order: the input channel varies fastest, then the width, then the height.
    A block lies within one tap if its rows divide the input channels.

    Args:
      shape: (rows, columns) of a block, each a divisor of the matrix's.
      columns: the columns, if the first argument is the rows alone: `block(4, 2)` is
        `block((4, 2))`.
      axes: as in `n_of_m`.

    Raises:
      ValueError: rows or columns are not whole numbers above 0.

    Reference: Gray, Radford and Kingma, "GPU kernels for block-sparse weights", 2017; Narang,
    Undersander and Diamos, "Block-sparse recurrent neural networks", 2017 (there a block's score is
    its largest |w|).

    >>> block((4, 2)).cut((3, 3, 8, 16))
    Groups(pattern='4x2', split=(18, 4, 8, 2), axes=(1, 3), num_active=None)
    """
    both: Any = shape if columns is None else (shape, columns)
    try:
        rows, columns = both
    except (TypeError, ValueError):
        raise ValueError(f"block {both!r} must be (rows, columns)") from None
    rows, columns = (check_whole("block:", x, 1) for x in (rows, columns))
    name = f"{rows}x{columns}"
    return _pattern(name, _block(name, rows, columns, kept_axes(axes)))


@comparable
def _block(name: str, rows: int, columns: int, axes: KeptAxes) -> CutLeaf:
    def cut_leaf(path: str, shape: tuple[int, ...]) -> Groups:
        if len(shape) < 2:
            raise ValueError("it has fewer than 2 axes")
        found = axes_of(path, shape, axes)
        summed = (*found.inputs, *found.window)
        split, at = split_sides(shape, [(summed, rows), (found.outputs, columns)])
        if len(at) < 2:
            height, width = num_places(shape, summed), num_places(shape, found.outputs)
            raise ValueError(f"blocks do not divide its {height} x {width} matrix")
        return Groups(name, split, at)

    return cut_leaf


def channels(
    axis: int | Literal["inputs", "outputs"] = "outputs", *, axes: AxesByPath | None = None
) -> Pattern:
    """Whole channels: all entries at one place of an axis are active, or none of them.

    Output channels do not grow by gradient (RigL, SNFS, GraNet) in front of a ReLU. An inactive one
    puts out exactly 0, and the ReLU's derivative is 0 there, so |g| is 0 for all of them: only
    those just dropped come back, and the masks stand still. A norm in between helps only if its
    bias is above 0, and then the channel's variance of 0 makes g some 300 times too large. Take the
    "inputs", or grow at random (SET, SET-ITOP), or prune only (GMP). This is no error, since a
    pattern does not see the activation (GELU and SiLU have a slope at 0).

    Only the kernel is pruned. The bias and the norm of a removed channel stay and are trained: the
    channel can put out a constant.

    Args:
      axis: "outputs" or "inputs": each place of all such axes together is a channel, for example
        each feature of each head of a query (in, heads, features). Or, as in NumPy, any axis that
        the leaf has: -1 holds the output channels of Flax's dense and convolution kernels, -2 the
        input channels. A channel of a stack of layers (`nn.scan`) is that of all its layers, unless
        `axes` says that the layers are a batch.
      axes: as in `n_of_m`.

    Raises:
      ValueError: the axis is neither of the two names nor a whole number.

    Reference: Li et al., "Pruning filters for efficient ConvNets", ICLR 2017 (output channels by
    their L1 norm).

    >>> channels().cut((3, 3, 8, 16))
    Groups(pattern='channels', split=(3, 3, 8, 16), axes=(0, 1, 2), num_active=None)
    """
    if axis not in ("inputs", "outputs"):
        axis = check_whole("channels: axis", axis)
    name = "channels" if axis in ("outputs", -1) else f"channels({axis})"
    return _pattern(name, _channels(name, axis, kept_axes(axes)))


@comparable
def _channels(name: str, axis: int | str, axes: KeptAxes) -> CutLeaf:
    def cut_leaf(path: str, shape: tuple[int, ...]) -> Groups:
        if isinstance(axis, str):
            found = axes_of(path, shape, axes)
            side = getattr(found, axis)
            if not side:
                raise ValueError(f"it has no axis of {axis}")
            each = (*side, *found.batch)
        else:
            each = (_axis(axis, shape),)
        return Groups(name, shape, tuple(i for i in range(len(shape)) if i not in each))

    return cut_leaf


def _pattern(name: str, cut_leaf: CutLeaf) -> Pattern:
    return Pattern(name, _of_shape(cut_leaf), cut_leaf)


@comparable
def _of_shape(cut_leaf: CutLeaf) -> Callable[[tuple[int, ...]], Groups]:
    """The groups of a shape without a path, which is taken to be in one of Flax's layouts."""
    return lambda shape: cut_leaf("", shape)


def _axis(axis: int, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"it has no axis {axis}")
    return axis % len(shape)
