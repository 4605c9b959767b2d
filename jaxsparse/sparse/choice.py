"""Which layers are executed by their active weights: those whose density is below break-even.

Where that lies was measured on two cores with AVX-512, a Zen 5's and for channel-major batches a
Sapphire Rapids', against XLA's dense layers; it is a property of machines, so `measured_break_even`
measures it on the one at hand.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax

from jaxsparse.integers import whole_number
from jaxsparse.kernels.load import backend
from jaxsparse.sparse.convolution import Layout
from jaxsparse.sparse.window import Window


class LayerShape(NamedTuple):
    """A layer as it was called, all that its speed depends on.

    Attributes:
      images: [image, y, x, channel], whatever the layout; (1, 1, rows, inputs) of a dense layer.
      kernel: (height, width, input channels of a group, output channels).
      window: of the convolution.
      layout: of its inputs and outputs.
    """

    images: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int]
    window: Window
    layout: Layout = "NHWC"

    @property
    def size(self) -> int:
        """Weights of the kernel."""
        return math.prod(self.kernel)

    @property
    def macs(self) -> int:
        """Multiplications and additions of one dense pass."""
        y, x = self.window.out_size(self.images[1:3])
        return self.images[0] * y * x * self.size


BreakEven: TypeAlias = Callable[[LayerShape, bool], float]
"""(layer, whether it is trained) to the density below which sparse execution is the faster one."""


def break_even(layer: LayerShape, train: bool = True) -> float:
    """Returns the density below which a layer is faster by its active weights, in [0, 1].

    A fit to what was measured, good to about a third: `measured_break_even` knows better. Dense
    layers with many channels are the faster ones of XLA, small images the slower ones of ours. On
    accelerators it is 0: there nothing was measured.

    Args:
      layer: as it is called.
      train: whether the backward pass counts too.
    """
    if jax.default_backend() != "cpu":
        return 0.0
    batch, height, width, _ = layer.images
    channels = 64 / max(layer.kernel[2], 1)
    if backend().name != "compiled":
        return 0.05 * min(channels, 1.0) ** 0.5
    if layer.layout == "CHWN" and batch >= 16:
        found = channels**0.6
    elif batch >= 16:
        found = 0.5 * channels**0.7 if train else 0.4 * channels**0.6
    else:
        pixels = min(batch * height * width, 1024) / 64
        found = 0.14 * max(pixels, 1.0) ** 0.4
        found = found if train else 0.35 * channels**0.7 * pixels**0.25
    return min(found, 1.0)


def choose_capacity(
    active: Mapping[str, int],
    layers: Mapping[str, LayerShape],
    previous: Mapping[str, int] | None = None,
    *,
    train: bool = True,
    exact: bool = False,
    break_even: BreakEven = break_even,
) -> dict[str, int]:
    """Returns the leaves to be executed by their active weights, with capacity for these.

    Other capacity are other shapes, and everything is compiled again. So there is capacity for a
    quarter more than is active, and what was chosen before stays until a leaf outgrows its
    capacity, half of all capacity is empty, or a leaf that is executed densely has come to half its
    break-even.

    Args:
      active: active weights of the leaves to choose from, from `count_active`.
      layers: by the path of the kernel, from `jaxsparse.nn.layer_shapes`; leaves without one stay
        as they are.
      previous: what was returned before the last mask update; None: nothing yet.
      train: whether the layers are trained.
      exact: capacity for what is active and no more: for numbers that do not change.
      break_even: decides; a layer at that density is executed sparsely.

    Returns:
      What `find_positions` takes as `capacity`.

    Raises:
      ValueError: a number of active weights that is no integer of at least 0, with its path.
    """
    active = {path: _checked_num(path, num) for path, num in active.items()}
    limits = {
        path: layers[path].size * break_even(layers[path], train)
        for path in active
        if path in layers
    }
    if previous is not None and _serves(previous, active, limits):
        return dict(previous)
    chosen = {path: active[path] for path, limit in limits.items() if active[path] <= limit > 0}
    if exact:
        return chosen
    return {path: min(num + num // 4, layers[path].size) for path, num in chosen.items()}


def _checked_num(path: str, num: int) -> int:
    whole = whole_number(num)
    if whole is None or whole < 0:
        raise ValueError(f"active weights of {path} are {num}; they must be a whole number")
    return whole


def _serves(
    capacity: Mapping[str, int], active: Mapping[str, int], limits: Mapping[str, float]
) -> bool:
    fits = all(active[path] <= most for path, most in capacity.items())
    is_used = sum(capacity.values()) <= 2 * sum(active[path] for path in capacity)
    dense = [path for path in limits if path not in capacity]
    return fits and is_used and not any(2 * active[path] <= limits[path] for path in dense)


def is_mostly_sparse(layers: Mapping[str, LayerShape], capacity: Mapping[str, int]) -> bool:
    """Whether at least half of the dense work is that of layers executed sparsely.

    Then a network of ours had better be channel-major, in which dense layers are slower.
    """
    total = sum(layer.macs for layer in layers.values())
    return 2 * sum(layers[path].macs for path in capacity) >= max(total, 1)
