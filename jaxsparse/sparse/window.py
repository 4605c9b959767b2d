"""The window of a convolution: what does not depend on the images or the weights."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

Pair: TypeAlias = tuple[int, int]


class Window(NamedTuple):
    """How a kernel moves over images, y before x everywhere.

    Attributes:
      taps: height and width of the kernel.
      strides: from output to output.
      padding: ((before, after), (before, after)), zeros around the images.
      dilation: from tap to tap.
      groups: the channels are cut into, input and output channels alike.
    """

    taps: Pair
    strides: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1

    def out_size(self, size: Sequence[int]) -> Pair:
        """Returns height and width of the outputs of images of that height and width.

        They are 0 where the kernel does not fit into the padded images, as in XLA.
        """
        y, x = (self._out(size[axis], axis) for axis in (0, 1))
        return y, x

    def _out(self, size: int, axis: int) -> int:
        padded = size + sum(self.padding[axis])
        reach = (self.taps[axis] - 1) * self.dilation[axis] + 1
        return max((padded - reach) // self.strides[axis] + 1, 0)


def check_window(window: Window, in_channels: int, kernel: Sequence[int]) -> None:
    """Raises a ValueError where a window, images and kernel do not fit together.

    Args:
      window: to check.
      in_channels: of the images.
      kernel: its shape, (height, width, input channels of a group, output channels).
    """
    if len(kernel) != 4 or tuple(kernel[:2]) != tuple(window.taps):
        raise ValueError(f"a kernel of shape {tuple(kernel)} has no window of {window.taps} taps")
    for name in ("taps", "strides", "dilation"):
        if min(getattr(window, name)) < 1:
            raise ValueError(f"{name} {getattr(window, name)} must be at least 1")
    if min(min(ends) for ends in window.padding) < 0:
        raise ValueError(f"padding {window.padding} must be at least 0")
    groups = window.groups
    if groups < 1 or in_channels % groups or kernel[3] % groups:
        raise ValueError(
            f"{groups} groups do not divide {in_channels} input and {kernel[3]} output channels"
        )
    if kernel[2] * groups != in_channels:
        raise ValueError(
            f"images with {in_channels} channels; a kernel of shape {tuple(kernel)} in {groups} "
            f"groups takes {kernel[2] * groups}"
        )
