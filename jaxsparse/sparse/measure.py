"""What layers take on the machine at hand, densely and by their active weights.

    layers = jaxsparse.nn.layer_shapes(model.apply, variables, images)
    print(jaxsparse.sparse.benchmark(layers, count_active(masks)))

Nothing is measured but when asked for, and each kind of layer once in a process.
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

# Calls that each time is the least of, and the seconds that these go on for at least.
_CALLS, _SECONDS = 5, 0.1
# Densities between which the time of a sparse layer is taken to be a line. The loop in JAX wins
# below a few percent or not at all, and takes seconds above.
_DENSITIES = {"compiled": (0.05, 0.4), "jax": (0.005, 0.05)}


class LayerTimes(NamedTuple):
    """What one layer takes.

    Attributes:
      path: of its kernel.
      num_active: active weights.
      size: weights.
      dense: seconds as it is.
      sparse: seconds by its active weights.
      break_even: density at which both take the same.
    """

    path: str
    num_active: int
    size: int
    dense: float
    sparse: float
    break_even: float


class Measured(NamedTuple):
    """What the layers of a network take on this machine; print it for a table.

    Attributes:
      train: whether the times are of the forward and the backward pass, or of the forward pass.
      layers: in the order of the network.
    """

    train: bool
    layers: tuple[LayerTimes, ...]

    def __str__(self) -> str:
        """The table of layers."""
        width = max([5, *(len(layer.path) for layer in self.layers)])
        what = "forward and backward" if self.train else "forward"
        lines = [
            f"{what}, kernels: {' '.join(backend())}, device: {jax.devices()[0].device_kind}",
            f"{'layer':<{width}} {'active':>11} {'density':>8} {'dense ms':>9} {'sparse ms':>9} "
            f"{'times':>7} {'break-even':>10}",
        ]
        for path, num, size, dense, sparse, even in self.layers:
            lines.append(
                f"{path:<{width}} {num:>11,} {num / size:>8.4f} {1e3 * dense:>9.3f} "
                f"{1e3 * sparse:>9.3f} {dense / sparse:>7.2f} {even:>10.3f}"
            )
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
    """Measures layers in both forms, at their density and where the two meet.

    Takes seconds per layer, most of them for compiling. Times are of layers alone: norms,
    optimizer and page faults are not in them (for the last see `keep_memory`).

    Args:
      layers: by the path of the kernel, from `jaxsparse.nn.layer_shapes`. A channel-major layer
        (of `model.clone(layout="CHWN")`) is executed densely as our networks do it there: XLA's
        layer of NHWC images between two changes of the layout.
      active: active weights of the leaves, from `count_active`; leaves without a layer are left
        out. Where these lie is drawn at random.
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

    For `choose_capacity` and `jaxsparse.nn.choose_forms`, as `break_even=measured_break_even`. It
    takes seconds for a layer of a new kind, and nothing the next time. The time of the sparse layer
    is measured at two densities and taken to be a line through these.

    Args:
      layer: as it is called; see `benchmark` for channel-major ones.
      train: whether the backward pass counts too.
    """
    densities = _DENSITIES[backend().name]
    nums = tuple(max(round(density * layer.size), 1) for density in densities)
    return _meet(nums, _seconds(layer, nums, train), layer.size)


def _meet(nums: tuple[int, ...], seconds: tuple[float, ...], size: int) -> float:
    """Where the line through the sparse times reaches the dense time, as a density."""
    dense, low, high = seconds
    slope = (high - low) / max(nums[1] - nums[0], 1)
    if slope <= 0:  # so little work that the number of weights does not show
        return float(low <= dense)
    return float(np.clip((nums[0] + (dense - low) / slope) / size, 0.0, 1.0))


@functools.cache
def _seconds(layer: LayerShape, nums: tuple[int, ...], train: bool) -> tuple[float, ...]:
    """Least seconds of the dense layer, and of the sparse one at each number of active weights."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
    # While something is traced these are to be computed all the same.
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
    """A call of the layer, and of its gradients for images and weights where it is trained."""
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
    """The least of some calls each, taken in turn: what others do to the machine only adds."""
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
