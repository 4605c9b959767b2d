"""The programs that `gpu_convolution` compiles and times, and the kernels that it draws.

A call of a small layer takes less time than its dispatch. So one program makes many calls in a
loop. The weights of each call depend on all results of the call before it, by far less than
rounding, so that XLA can neither leave a call out, nor move it out of the loop, nor begin it early.
This costs one tiny kernel for each call, in all forms alike. The loss is half the sum of squares,
so the gradient of the outputs is the outputs. If it were known beforehand, XLA could move the
weights' gradient out of the loop.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.gpu_layers import Layer, Lists, make_lists, num_active
from benchmarks.pallas_convolution import Block, convolve

CALLS = 10
"""Calls in one program."""


class Case(NamedTuple):
    """One layer in one form.

    Attributes:
      layer: the convolution.
      train: whether the gradients of images and weights are computed too.
      dtype: of the images, and of dense weights.
      block: of the sparse kernels. None for the dense form, with images [image, y, x, channel].
      capacity: of the lists of active weights.
    """

    layer: Layer
    train: bool
    dtype: str
    block: Block | None
    capacity: int


class Kernel(NamedTuple):
    """A random kernel.

    Attributes:
      flat: int32[capacity], positions in [output, y, x, input], then -1.
      values: float32[capacity], then 0.
      lists: of the active weights.
      dense: float32[y, x, input, output], on the host.
    """

    flat: np.ndarray
    values: jax.Array
    lists: Lists
    dense: np.ndarray


class Program(NamedTuple):
    """A compiled program of `CALLS` calls.

    Attributes:
      run: maps weights, the last results, images and lists to the results.
      results: shapes and dtypes of the results.
    """

    run: Callable[..., Any]
    results: Any


class Time(NamedTuple):
    """Seconds of one call: median and quartiles over rounds."""

    median: float
    low: float
    high: float


def draw_kernel(layer: Layer, sparsity: float, capacity: int) -> Kernel:
    """Draws uniform positions, and normal values scaled by the number of weights of an output."""
    rng = np.random.default_rng(0)
    active, size = num_active(layer, sparsity), layer.columns * layer.outputs
    flat = np.sort(rng.choice(size, active, replace=False, shuffle=False))
    values = rng.normal(0, np.sqrt(layer.outputs / active), active).astype(np.float32)
    matrix = np.zeros(size, np.float32)
    matrix[flat] = values
    by_output = matrix.reshape(layer.outputs, layer.taps, layer.taps, layer.inputs)
    after = (0, capacity - active)
    return Kernel(
        np.pad(flat, after, constant_values=-1).astype(np.int32),
        jnp.asarray(np.pad(values, after)),
        make_lists(flat, layer, capacity),
        np.ascontiguousarray(by_output.transpose(1, 2, 3, 0)),
    )


def compile_images(layer: Layer, batch: int) -> Any:
    """Compiles programs, by dtype, that draw images in both layouts, channel-major first."""

    def draw() -> dict[str, tuple[jax.Array, jax.Array]]:
        shape = (layer.inputs, layer.size, layer.size, batch)
        images = jax.random.normal(jax.random.key(0, impl="rbg"), shape)
        both = (images, images.transpose(3, 1, 2, 0))
        return {dtype: tuple(x.astype(dtype) for x in both) for dtype in ("float32", "bfloat16")}

    return jax.jit(draw).lower().compile()


def compile_case(case: Case, batch: int, interpret: bool) -> Program:
    """Compiles the calls of a case."""
    layer, array = case.layer, jax.ShapeDtypeStruct
    ints = lambda size: array((size,), jnp.int32)
    lists = None
    if case.block is None:
        images = array((batch, layer.size, layer.size, layer.inputs), case.dtype)
        weights = array((layer.taps, layer.taps, layer.inputs, layer.outputs), case.dtype)
    else:
        images = array((layer.inputs, layer.size, layer.size, batch), case.dtype)
        weights = array((case.capacity,), jnp.float32)
        lists = Lists(
            ints(layer.outputs + 1),
            ints(case.capacity),
            ints(layer.inputs + 1),
            ints(case.capacity),
            ints(case.capacity),
        )
    step = functools.partial(_step, case, interpret)
    return compile_calls(step, weights, images, lists)


def compile_calls(step: Callable[..., Any], weights: Any, images: Any, lists: Any) -> Program:
    """Compiles `CALLS` calls, one after the other.

    Args:
      step: maps weights, images and lists to a tuple of arrays.
      weights: shape and dtype.
      images: shape and dtype.
      lists: shapes and dtypes.
    """

    def calls(weights: Any, results: Any, images: Any, lists: Any) -> Any:
        def call(_: Any, carry: Any) -> Any:
            weights, _ = carry
            results = step(weights, images, lists)
            first = sum(x[(0,) * x.ndim].astype(jnp.float32) for x in results)
            at = weights.at[(0,) * weights.ndim]
            return at.add((1e-30 * first).astype(weights.dtype)), results

        return lax.fori_loop(0, CALLS, call, (weights, results))[1]

    results = jax.eval_shape(step, weights, images, lists)
    # The results are written over the last ones. New buffers would have to be filled with zeros.
    run = jax.jit(calls, donate_argnums=1)
    return Program(run.lower(weights, results, images, lists).compile(), results)


def compile_errors(layer: Layer, train: bool, dtype: str, batch: int, capacity: int) -> Any:
    """Compiles the relative errors of the sparse form's results, against the dense ones."""
    array = jax.ShapeDtypeStruct
    sizes = [(layer.outputs, layer.out_size), (layer.inputs, layer.size)][: 2 if train else 1]
    found = [array((channels, size, size, batch), dtype) for channels, size in sizes]
    expected = [array((batch, size, size, channels), dtype) for channels, size in sizes]
    if train:
        found.append(array((capacity,), jnp.float32))
        expected.append(array((layer.taps, layer.taps, layer.inputs, layer.outputs), dtype))
    flat = array((capacity,), jnp.int32)
    return jax.jit(_errors).lower(tuple(found), tuple(expected), flat).compile()


def _errors(found: Any, expected: Any, flat: jax.Array) -> jax.Array:
    pairs = [(x, y.transpose(3, 1, 2, 0)) for x, y in zip(found[:2], expected[:2], strict=True)]
    if len(found) == 3:
        active = expected[2].transpose(3, 0, 1, 2).reshape(-1)[jnp.maximum(flat, 0)]
        pairs.append((found[2], jnp.where(flat >= 0, active, 0)))
    return jnp.stack([_error(*(x.astype(jnp.float32) for x in pair)) for pair in pairs])


def _error(found: jax.Array, expected: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum((found - expected) ** 2) / jnp.sum(expected**2))


def _step(
    case: Case, interpret: bool, weights: jax.Array, images: jax.Array, lists: Any
) -> tuple[jax.Array, ...]:
    """The outputs and, in training, the gradients of images and weights."""

    def forward(weights: jax.Array, images: jax.Array) -> jax.Array:
        if case.block is not None:
            return convolve(case.layer, case.block, interpret, images, weights, lists)
        strides = (case.layer.stride,) * 2
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(images, weights, strides, "SAME", dimension_numbers=layout)

    if not case.train:
        return (forward(weights, images),)
    out, backward = jax.vjp(forward, weights, images)
    grad_weights, grad_images = backward(out)
    return out, grad_images, grad_weights


def run_once(program: Program, weights: Any, images: Any, lists: Any) -> Any:
    """Returns the results."""
    results = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), program.results)
    return jax.block_until_ready(program.run(weights, results, images, lists))


def measure(
    program: Program, weights: Any, images: Any, lists: Any, seconds: float
) -> tuple[Time, Any]:
    """Times a call and returns its results too.

    Args:
      program: to be timed, two runs at a time, so that one is dispatched while the other runs.
      weights: its first argument.
      images: its third argument.
      lists: its fourth argument.
      seconds: about the time to take, in 3 to 9 rounds.
    """
    results = run_once(program, weights, images, lists)
    times: list[float] = []
    while len(times) < 3 or (len(times) < 9 and sum(times) * 2 * CALLS < seconds):
        start = time.perf_counter()
        for _ in range(2):
            results = program.run(weights, results, images, lists)
        jax.block_until_ready(results)
        times.append((time.perf_counter() - start) / (2 * CALLS))
    low, median, high = np.percentile(times, [25, 50, 75])
    return Time(float(median), float(low), float(high)), results
