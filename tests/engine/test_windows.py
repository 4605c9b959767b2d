"""Pools, global sums and maxima."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tests.engine.agreement import assert_agree, compiled, numbers

IMAGES = numbers(17, 7, 6, 4)


def largest(window, strides, padding):
    size, steps = (1, *window, 1), (1, *strides, 1)
    return lambda x: jax.lax.reduce_window(x, -np.inf, jax.lax.max, size, steps, padding)


def total(window, strides, padding):
    size, steps = (1, *window, 1), (1, *strides, 1)
    return lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, size, steps, padding)


def test_pools():
    assert_agree(
        {
            "max": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
            "max, same": lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"),
            "max, overlapping": lambda x: nn.max_pool(x, (3, 2), (1, 1)),
            "max, gaps": lambda x: nn.max_pool(x, (1, 2), (3, 3)),
            "max, padding": largest((3, 3), (2, 2), [(0, 0), (1, 1), (2, 0), (0, 0)]),
            "max, whole": largest((7, 6), (1, 1), "VALID"),
            "max, beyond the image": largest((9, 13), (1, 1), "SAME"),
            "average": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
            "average, same": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
            "average without padding": lambda x: nn.avg_pool(
                x, (3, 2), (1, 2), "SAME", count_include_pad=False
            ),
            "sum, padding": total((2, 3), (2, 1), [(0, 0), (2, 1), (0, 3), (0, 0)]),
            "max of negative numbers": lambda x: nn.max_pool(-jnp.abs(x), (2, 2), (1, 1), "SAME"),
        },
        IMAGES,
    )


def test_small_windows_of_wide_images():
    """A row of results has whole vectors and a rest, less or more than half a vector."""
    windows = [(2, 2), (3, 3), (1, 3), (4, 2), (2, 9)]
    strides = [(2, 2), (1, 1), (3, 2), (2, 1), (1, 3)]
    pool = lambda window, stride: lambda x: nn.max_pool(x, window, stride)
    for width in (75, 81, 93):
        assert_agree(
            {f"{w} by {s}": pool(w, s) for w, s in itertools.product(windows, strides)},
            numbers(2, 11, width, 2),
            batches=(1, 2),
        )


def test_nan_is_the_largest():
    """NaN reaches the windows that see it, wherever in them it is, and no others."""
    x = numbers(1, 6, 40, 1)
    x[0, [2, 3, 2], [1, 22, 39]] = np.nan
    pool = lambda x: nn.max_pool(x, (2, 2), (2, 2))
    np.testing.assert_array_equal(compiled(pool, x)((x,)), pool(x))


def test_reductions():
    assert_agree(
        {
            "mean of pixels": lambda x: x.mean((1, 2)),
            "mean of pixels, kept": lambda x: x.mean((1, 2), keepdims=True),
            "max of pixels": lambda x: x.max((1, 2)),
            "max of pixels, kept": lambda x: x.max((1, 2), keepdims=True) - x,
            "sum of channels": lambda x: x.sum(-1),
            "max of channels": lambda x: x.max(-1, keepdims=True),
            "sum of all": lambda x: x.sum((1, 2, 3)),
            "max of all": lambda x: x.max((1, 2, 3)),
            "smallest": lambda x: x.min((1, 2)),
            "means of a mean": lambda x: x.mean(-1).mean((1, 2)),
            "smallest of channels": lambda x: x.min(-1),
        },
        IMAGES,
    )


def test_windows_over_channels_are_left_to_xla():
    size = (1, 1, 1, 2)
    pool = lambda x: jax.lax.reduce_window(x, -np.inf, jax.lax.max, size, size, "VALID")
    assert "span images or channels" in str(compiled(pool, IMAGES))


def test_huge_windows():
    """A window that is much larger than the image is left to XLA: a file may not ask for it."""
    pool = largest((7, 300), (1, 1), [(0, 0), (0, 0), (299, 299), (0, 0)])
    assert "much larger" in str(compiled(pool, IMAGES))
