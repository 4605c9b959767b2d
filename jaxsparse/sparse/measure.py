"""Measures the time of layers on this machine, dense and by their active weights.

    layers = jaxsparse.nn.layer_shapes(model.apply, variables, images)
    print(jaxsparse.sparse.benchmark(layers, count_active(masks)))

Each kind of layer is measured once in a process, when it is first asked for.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.kernels.load import backend
from jaxsparse.sparse.choice import LayerShape
from jaxsparse.sparse.convolution import sparse_conv
from jaxsparse.sparse.positions import Positions, positions_of
from jaxsparse.sparse.window import concrete
from jaxsparse.text_table import text_table

# Each time is the least of at least so many calls, which go on for at least so many seconds.
_CALLS, _SECONDS = 5, 0.1
# The time of a sparse layer is measured at these two densities and taken to be linear between and
# beyond them. The loop in JAX is faster below a few percent or never, and takes seconds above.
_DENSITIES = {"compiled": (0.05, 0.4), "jax": (0.005, 0.05)}


class LayerTimes(NamedTuple):
    """The times of one layer.

    Attributes:
      path: of the kernel.
      num_active: number of active weights.
      size: number of weights.
      dense: seconds of the dense layer.
      sparse: seconds of the layer by its active weights.
      break_even: density at which both take the same time, in [0, 1].
    """

    path: str
    num_active: int
    size: int
    dense: float
    sparse: float
    break_even: float


_HEADING = ("layer", "active", "density", "dense ms", "sparse ms", "times", "break-even")


def _row(layer: LayerTimes) -> tuple[str, ...]:
    path, num, size, dense, sparse, even = layer
    ms = f"{1e3 * dense:.3f}", f"{1e3 * sparse:.3f}"
    return (path, f"{num:,}", f"{num / size:.4f}", *ms, f"{dense / sparse:.2f}", f"{even:.3f}")


class Measured(NamedTuple):
    """The times of a network's layers on this machine. `print` shows a table.

    Attributes:
      train: whether the times include the backward pass.
      layers: in the order of the network.
    """

    train: bool
    layers: tuple[LayerTimes, ...]

    def __str__(self) -> str:
        """The table of layers."""
        what = "forward and backward" if self.train else "forward"
        lines = [
            f"{what}, kernels: {' '.join(backend())}, device: {jax.devices()[0].device_kind}",
            *text_table([_HEADING, *map(_row, self.layers)]),
        ]
        dense, sparse = (sum(getattr(x, name) for x in self.layers) for name in ("dense", "sparse"))
        fastest = sum(min(x.dense, x.sparse) for x in self.layers)
        lines.append(
            f"together {1e3 * dense:.2f} ms dense, {1e3 * sparse:.2f} ms sparse, "
            f"{1e3 * fastest:.2f} ms each in its faster form"
        )
        return "\n".join(lines)


def benchmark(
    layers: Mapping[str, LayerShape], active: Mapping[str, int], *, train: bool = True
) -> Measured:
    """Measures layers in both forms at their density, and their break-even.

    It takes seconds for each layer, most of them for compiling. The times are those of the layers
    alone, without norms, optimizer and page faults (for the last see `keep_memory`).

    Args:
      layers: by the path of the kernel, from `jaxsparse.nn.layer_shapes`. The dense form of a
        channel-major layer (of `model.clone(layout="CHWN")`) is that of our networks: XLA's layer
        for NHWC images between two transpositions.
      active: number of active weights by path, from `count_active`; leaves without a layer are
        left out. The positions are drawn at random.
      train: whether to measure the backward pass too.
    """
    rows = []
    for path, num in active.items():
        if path in layers:
            layer = layers[path]
            dense, sparse = _seconds(layer, (num,), train)
            even = measured_break_even(layer, train)
            rows.append(LayerTimes(path, num, layer.size, dense, sparse, even))
    return Measured(train, tuple(rows))


def measured_break_even(layer: LayerShape, train: bool = True) -> float:
    """Measures the density below which a layer is faster by its active weights, in [0, 1].

    Give it to `choose_capacity` or `jaxsparse.nn.choose_forms` as `break_even=measured_break_even`.
    It takes seconds for a layer of a new kind, and nothing the next time. The time of the sparse
    layer is measured at two densities and taken to be a line through these.

    Args:
      layer: its shapes; see `benchmark` for channel-major layers.
      train: whether the backward pass counts too.
    """
    densities = _DENSITIES[backend().name]
    nums = tuple(max(round(density * layer.size), 1) for density in densities)
    return _meet(nums, _seconds(layer, nums, train), layer.size)


def _meet(nums: tuple[int, ...], seconds: tuple[float, ...], size: int) -> float:
    """The density at which the line through the two sparse times reaches the dense time."""
    dense, low, high = seconds
    slope = (high - low) / max(nums[1] - nums[0], 1)
    if slope <= 0:  # the number of weights has no effect on so little work
        return float(low <= dense)
    return float(np.clip((nums[0] + (dense - low) / slope) / size, 0.0, 1.0))


@functools.cache
def _seconds(layer: LayerShape, nums: tuple[int, ...], train: bool) -> tuple[float, ...]:
    """Least seconds of the dense layer, then of the sparse one at each number of active weights."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
    # The arrays are computed even if the caller is being traced.
    with jax.ensure_compile_time_eval():
        batch, height, width, channels = layer.images
        shape = (batch, height, width, channels)
        if layer.layout == "CHWN":
            shape = (channels, height, width, batch)
        images = draw(*shape)
        runs = [_compiled(functools.partial(_dense, layer), train, images, draw(*layer.kernel))]
        for num in nums:
            mask = np.zeros(layer.size, bool)
            mask[rng.choice(layer.size, num, replace=False)] = True
            positions = positions_of(jnp.asarray(mask.reshape(layer.kernel)))
            sparse = functools.partial(_sparse, layer)
            runs.append(_compiled(sparse, train, images, draw(num), positions))
        return _least_seconds(runs)


def _dense(layer: LayerShape, images: jax.Array, kernel: jax.Array) -> jax.Array:
    _, _, inputs, outputs = kernel.shape
    if layer.kernel[:2] == layer.images[:2] == (1, 1):  # a dense layer
        return images.reshape(-1, inputs) @ kernel.reshape(inputs, outputs)
    window = concrete(layer.window, layer.images[1:3])
    images = images if layer.layout == "NHWC" else images.transpose(3, 1, 2, 0)
    out = lax.conv_general_dilated(
        images,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )
    return out if layer.layout == "NHWC" else out.transpose(3, 1, 2, 0)


def _sparse(
    layer: LayerShape, images: jax.Array, values: jax.Array, positions: Positions
) -> jax.Array:
    return sparse_conv(images, values, positions, layer.window, layout=layer.layout)


def _compiled(
    apply: Callable[..., jax.Array], train: bool, images: jax.Array, weights: jax.Array, *rest: Any
) -> Callable[[], Any]:
    """A call of the layer, with its gradients for images and weights if `train`."""
    if not train:
        return functools.partial(
            jax.jit(apply).lower(images, weights, *rest).compile(), images, weights, *rest
        )

    def both(images: jax.Array, weights: jax.Array, grads: jax.Array, *rest: Any) -> Any:
        out, pull = jax.vjp(lambda x, w: apply(x, w, *rest), images, weights)
        return out, pull(grads)

    out = jax.eval_shape(apply, images, weights, *rest)
    args = (images, weights, jnp.ones(out.shape, out.dtype), *rest)
    return functools.partial(jax.jit(both).lower(*args).compile(), *args)


def _least_seconds(runs: list[Callable[[], Any]]) -> tuple[float, ...]:
    """The least time of each run. The least, since other processes can only add time."""
    for run in runs:
        jax.block_until_ready(run())
    least, calls, start = [float("inf")] * len(runs), 0, time.perf_counter()
    while calls < _CALLS or time.perf_counter() - start < _SECONDS * len(runs):
        for i, run in enumerate(runs):
            before = time.perf_counter()
            jax.block_until_ready(run())
            least[i] = min(least[i], time.perf_counter() - before)
        calls += 1
    return tuple(least)
