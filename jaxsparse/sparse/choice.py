"""Chooses the layers that are executed by their active weights: those below the break-even density.

The break-even was measured against XLA's dense layers, on two cores with AVX-512: of a Zen 5, and
of a Sapphire Rapids for channel-major batches. It differs between machines;
`measured_break_even` measures it on the one at hand.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax

from jaxsparse.checks import check_whole
from jaxsparse.kernels.load import backend
from jaxsparse.sparse.convolution import Layout
from jaxsparse.sparse.window import Window


class LayerShape(NamedTuple):
    """The shapes of one call of a layer, which its speed depends on.

    Attributes:
      images: (image, y, x, channel) in any layout; (1, 1, rows, inputs) for a dense layer.
      kernel: (height, width, input channels of a group, output channels).
      window: of the convolution.
      layout: of inputs and outputs.
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
"""Maps (layer, whether it is trained) to the density below which sparse execution is faster."""


def break_even(layer: LayerShape, train: bool = True) -> float:
    """Returns the density below which a layer is faster by its active weights, in [0, 1].

    This is a fit to measurements, good to about a third; `measured_break_even` is exact. XLA's
    dense layers are fast with many channels, and our sparse ones are slow with small images. On
    accelerators it is 0, since nothing was measured there.

    Args:
      layer: its shapes.
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
    """Returns the leaves to execute by their active weights, each with its capacity.

    A new capacity is a new shape, for which everything is compiled again. So the capacity is a
    quarter more than the number of active weights, and a previous choice stays as long as it
    serves. It no longer serves if a leaf outgrows its capacity, if the leaves together use less
    than half of their capacity, or if a dense leaf has fallen to half of its break-even.

    Args:
      active: number of active weights, at least 0, by the path of the leaf, from `count_active`.
      layers: by the path of the kernel, from `jaxsparse.nn.layer_shapes`; leaves without a layer
        stay dense.
      previous: the choice before the last mask update; None if there was none.
      train: whether the layers are trained.
      exact: makes each capacity the number of active weights. For masks that do not change.
      break_even: gives the density at or below which a layer is executed sparsely.

    Returns:
      The capacity by path, as `find_positions` takes it.

    Raises:
      ValueError: a number of active weights is no whole number, or below 0; names the path.
    """
    active = {path: check_whole(f"active[{path!r}]", num, 0) for path, num in active.items()}
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


def _serves(
    capacity: Mapping[str, int], active: Mapping[str, int], limits: Mapping[str, float]
) -> bool:
    fits = all(active[path] <= most for path, most in capacity.items())
    is_used = sum(capacity.values()) <= 2 * sum(active[path] for path in capacity)
    dense = [path for path in limits if path not in capacity]
    return fits and is_used and not any(2 * active[path] <= limits[path] for path in dense)


def is_mostly_sparse(layers: Mapping[str, LayerShape], capacity: Mapping[str, int]) -> bool:
    """Whether layers that are executed sparsely have at least half of the dense multiplications.

    Then our networks are faster channel-major. Otherwise they are not: dense layers are slower in
    that layout.
    """
    total = sum(layer.macs for layer in layers.values())
    return 2 * sum(layers[path].macs for path in capacity) >= max(total, 1)
