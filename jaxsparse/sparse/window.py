"""The window of a convolution: its taps, strides, padding, dilation and groups."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from jaxsparse.checks import check_whole

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = str | int | Sequence[int | Sequence[int]]

_PADDINGS = ("SAME", "SAME_LOWER", "VALID")

LARGEST = 2**53
"""Largest number of elements of padded images. Offsets of the kernels, in bytes, fit in int64."""


class Window(NamedTuple):
    """How a kernel moves over images. Pairs are (y, x); one whole number stands for both.

    Attributes:
      taps: height and width of the kernel, at least 1.
      strides: from output to output, at least 1.
      padding: ((before, after), (before, after)), zeros around the images, at least 0; or a number
        for both ends of an axis, or for all ends; or "SAME", "SAME_LOWER", "VALID", as in Flax.
      dilation: from tap to tap, at least 1.
      groups: number of groups that input and output channels are cut into, at least 1.
    """

    taps: int | Sequence[int]
    strides: int | Sequence[int] = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    dilation: int | Sequence[int] = (1, 1)
    groups: int = 1

    def out_size(self, size: Sequence[int]) -> Pair:
        """Returns height and width of the outputs for images of a height and width.

        They are 0 if the kernel does not fit into the padded images, as in XLA.

        >>> Window(3, padding="SAME", strides=2).out_size((7, 8))
        (4, 4)
        """
        return concrete(self, size).out_size(size)


class ConcreteWindow(NamedTuple):
    """A window for images of one size, in Python's integers; the fields are those of `Window`.

    A stride that leaves the images after the first output is shortened, and the dilation of a
    single tap is 1. The outputs are the same, and no number exceeds the size of the padded images.
    """

    taps: Pair
    strides: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int

    def out_size(self, size: Sequence[int]) -> Pair:
        """Returns height and width of the outputs, as `Window.out_size`."""
        y, x = (
            max((size[i] + sum(self.padding[i]) - self.reach[i]) // self.strides[i] + 1, 0)
            for i in (0, 1)
        )
        return y, x

    @property
    def reach(self) -> Pair:
        """Height and width that the taps of one output span."""
        y, x = ((n - 1) * d + 1 for n, d in zip(self.taps, self.dilation, strict=True))
        return y, x


def concrete(window: Window, size: Sequence[int]) -> ConcreteWindow:
    """Returns the window for images of a height and width, with pairs of integers throughout.

    Raises:
      ValueError: a field is out of its range or of another kind; names it.

    >>> concrete(Window((3, 2), strides=2, padding="SAME"), (7, 8)).padding
    ((1, 1), (0, 0))
    >>> concrete(Window(3, strides=2**70, padding=(1, (0, 2))), (7, 8)).strides
    (7, 8)
    """
    if not isinstance(window, Window):
        raise ValueError(f"window {window!r} must be a jaxsparse.sparse.Window")
    taps, strides, dilation = (
        _pair(name, getattr(window, name)) for name in ("taps", "strides", "dilation")
    )
    groups = check_whole("groups", window.groups, 1)
    dilation = (dilation[0] if taps[0] > 1 else 1, dilation[1] if taps[1] > 1 else 1)
    found = ConcreteWindow(taps, strides, ((0, 0), (0, 0)), dilation, groups)
    found = found._replace(padding=_padding(window.padding, found, size))
    spare = [size[i] + sum(found.padding[i]) - found.reach[i] for i in (0, 1)]
    y, x = (min(found.strides[i], max(spare[i], 0) + 1) for i in (0, 1))
    return found._replace(strides=(y, x))


def check_window(window: ConcreteWindow, images: Sequence[int], kernel: Sequence[int]) -> None:
    """Raises a ValueError if a window, images and kernel do not fit together.

    Args:
      window: to check.
      images: their shape, [image, y, x, channel].
      kernel: its shape, (height, width, input channels of a group, output channels).
    """
    if len(kernel) != 4 or tuple(kernel[:2]) != window.taps:
        raise ValueError(f"a kernel of shape {tuple(kernel)} has no window of {window.taps} taps")
    batch, height, width, in_channels = images
    groups = window.groups
    if in_channels % groups or kernel[3] % groups:
        raise ValueError(
            f"{groups} groups do not divide {in_channels} input and {kernel[3]} output channels"
        )
    if kernel[2] * groups != in_channels:
        raise ValueError(
            f"images with {in_channels} channels; a kernel of shape {tuple(kernel)} in {groups} "
            f"groups takes {kernel[2] * groups}"
        )
    y, x = (n + sum(ends) for n, ends in zip((height, width), window.padding, strict=True))
    numbers = math.prod(max(n, 1) for n in (batch, y, x, in_channels + kernel[3]))
    if max(y, x) >= 2**31 or numbers > LARGEST:
        raise ValueError(
            f"images of {y} x {x} pixels with padding {window.padding}, {in_channels} input and "
            f"{kernel[3]} output channels are too large: an axis of pixels must be below 2**31, "
            "and all numbers at most 2**53"
        )


def _both(given: Any) -> tuple[Any, ...]:
    """The two values, for y and x or for before and after; a single one stands for both."""
    is_one = isinstance(given, str) or not isinstance(given, Sequence)
    return (given, given) if is_one else tuple(given)


def _pair(name: str, given: Any) -> Pair:
    if len(both := _both(given)) != 2:
        raise ValueError(f"{name} {given!r} must be a whole number, or two: for y and x")
    y, x = (check_whole(name, n, 1) for n in both)
    return y, x


def _padding(given: Any, window: ConcreteWindow, size: Sequence[int]) -> tuple[Pair, Pair]:
    if isinstance(given, str) and given.upper() in _PADDINGS:
        return _named_padding(given.upper(), window, size)
    axes = [_both(ends) for ends in _both(given)]
    if isinstance(given, str) or [len(ends) for ends in axes] != [2, 2]:
        raise ValueError(
            f"padding {given!r} must be ((before, after), (before, after)), a whole number for "
            f"both ends or for all, or one of {', '.join(_PADDINGS)}"
        )
    y, x = ((check_whole("padding", a, 0), check_whole("padding", b, 0)) for a, b in axes)
    return y, x


def _named_padding(name: str, window: ConcreteWindow, size: Sequence[int]) -> tuple[Pair, Pair]:
    """The zeros of "SAME", "SAME_LOWER" and "VALID".

    "SAME" has ceil(size / stride) outputs. If the number of zeros is odd, the extra one goes to the
    end; with "SAME_LOWER" it goes to the front.
    """
    if name == "VALID":
        return ((0, 0), (0, 0))

    def ends(axis: int) -> Pair:
        stride, length = window.strides[axis], size[axis]
        last = (-(-length // stride) - 1) * stride
        missing = max(last + window.reach[axis] - length, 0)
        few, many = missing // 2, missing - missing // 2
        return (few, many) if name == "SAME" else (many, few)

    return ends(0), ends(1)
