"""Slices, pads, joins, splits, reshapes, transposes, broadcasts."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.engine.agreement import assert_agree, compiled, numbers

IMAGES = numbers(17, 6, 4, 4)


def test_slices_and_pads():
    pad = lambda *config: lambda x: jax.lax.pad(x, 0.0, [(0, 0, 0), *((*c, 0) for c in config)])
    assert_agree(
        {
            "channels": lambda x: x[..., 1:3],
            "every second channel": lambda x: x[..., ::2],
            "pixels": lambda x: x[:, 1:5, 2:],
            "every second pixel": lambda x: x[:, ::2, 1::2],
            "one row": lambda x: x[:, 2],
            "one pixel": lambda x: x[:, 2, 3],
            "one channel": lambda x: x[..., 2],
            "borders": pad((1, 2), (0, 3), (0, 0)),
            "crops": pad((-1, 2), (1, -2), (0, 0)),
            "channels around": pad((0, 0), (0, 0), (2, 1)),
            "channels off": pad((0, 1), (0, 0), (-1, 2)),
            "convolution of a pad": lambda x: jnp.pad(
                x @ numbers(4, 3), [(0, 0), (1, 1), (1, 1), (0, 0)]
            ),
        },
        IMAGES,
    )


def test_joins_and_splits():
    zeros = lambda x, n: jnp.zeros((*x.shape[:3], n), x.dtype)
    assert_agree(
        {
            "twice": lambda x: jnp.concatenate([x, x], -1),
            "with a function": lambda x: jnp.concatenate([jax.nn.relu(x), -x], -1),
            "with zeros": lambda x: jnp.concatenate([zeros(x, 2), x, zeros(x, 1)], -1),
            "with numbers by pixel": lambda x: jnp.concatenate(
                [x, jnp.broadcast_to(numbers(1, 6, 4, 2), (len(x), 6, 4, 2))], -1
            ),
            "split": lambda x: jnp.split(x, 2, -1)[0] * jnp.split(x, 2, -1)[1],
            "shuffle": lambda x: x.reshape(*x.shape[:3], 2, 2).swapaxes(3, 4).reshape(x.shape),
            "turned": lambda x: jnp.flip(x, -1),
            "a padded shortcut": lambda x: jnp.pad(x[:, ::2, ::2], [(0, 0)] * 3 + [(1, 1)]),
        },
        IMAGES,
    )


def test_reshapes_and_transposes():
    assert_agree(
        {
            "flat": lambda x: x.reshape(len(x), -1),
            "flat, channels first": lambda x: x.transpose(0, 3, 1, 2).reshape(len(x), -1),
            "rows joined": lambda x: x.reshape(len(x), 24, 4),
            "patches": lambda x: (
                x.reshape(len(x), 3, 2, 2, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(len(x), 6, 16)
            ),
            "heads": lambda x: x.reshape(len(x), 24, 2, 2).transpose(0, 2, 1, 3),
            "there and back": lambda x: jax.nn.relu(x.reshape(len(x), -1)).reshape(x.shape),
            "turned round": lambda x: x.transpose(0, 2, 1, 3),
            "depth to space": lambda x: (
                x.reshape(len(x), 6, 4, 2, 2).transpose(0, 1, 3, 2, 4).reshape(len(x), 12, 8)
            ),
        },
        IMAGES,
    )


def test_broadcasts():
    assert_agree(
        {
            "to images": lambda x: jnp.broadcast_to(x[:, None, None, :], (len(x), 3, 5, 8)),
            "of two": lambda x: x[:, :4, None] * jnp.ones((1, 1, 6), np.float32),
            "as a gate": lambda x: x[:, None, None, :4] * x[:, None, None, 4:],
        },
        numbers(17, 8),
    )


def test_what_mixes_images_is_left_to_xla():
    x = numbers(2, 4, 3)
    assert "images" in str(compiled(lambda x: x.reshape(-1, 3), x))
    assert "images" in str(compiled(lambda x: x - x[::-1], x))
    assert "images" in str(compiled(lambda x: x.sum(0), x))
    assert "images" in str(compiled(lambda x: jnp.flip(x, 0), x))
