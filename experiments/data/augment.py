"""The augmentation of CIFAR runs: random crop and flip of uint8 batches, inside the jitted step."""

import jax
import jax.numpy as jnp

from jaxsparse.types import OptionError

MODES = ("reflect", "zero")


def crop_and_flip(
    key: jax.Array, step: jax.Array | int, images: jax.Array, *, mode: str, pad: int = 4
) -> jax.Array:
    """Pads every image, crops it to its size at random, and mirrors half of them left to right.

    Every image has its own draws: the offset is uniform on the (2 pad + 1)^2 places, and a flip has
    probability 1/2. The draws follow from the key and the step alone, so a resumed run sees the
    same images as an uninterrupted one.

    Args:
      key: a key for the augmentation alone; the same at every step.
      step: number of the step, folded into the key; an integer or an integer scalar.
      images: uint8[n, height, width, channels].
      mode: how to pad: "reflect" mirrors the image about its outermost pixels (GraNet's CIFAR-10
        runs), "zero" adds zeros (its CIFAR-100 runs).
      pad: number of pixels to pad on each of the four sides, at least 0; 0 only flips. With
        "reflect" it must be below height and width.

    Returns:
      The batch, with the dtype and shape of `images`.

    Raises:
      ValueError: `mode` or `pad` is out of range.
    """
    height, width = images.shape[1:3]
    if mode not in MODES:
        raise OptionError("mode", mode, f"must be one of {', '.join(MODES)}")
    if not 0 <= pad or (mode == "reflect" and pad >= min(height, width)):
        wrong = "must be at least 0, and with mode='reflect' below the size of the images"
        raise OptionError("pad", pad, f"{wrong}, {height} x {width}")
    tops, lefts, flips = draws(jax.random.fold_in(key, step), len(images), pad=pad)
    around = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    padded = jnp.pad(images, around, mode="reflect" if mode == "reflect" else "constant")
    # One gather whose indices include the flip: on CPU it is faster than dynamic_slice under vmap.
    rows = tops[:, None] + jnp.arange(height)[None, :]
    columns = lefts[:, None] + jnp.arange(width)[None, :]
    columns = jnp.where(flips[:, None], columns[:, ::-1], columns)
    image = jnp.arange(len(images))
    return padded[image[:, None, None], rows[:, :, None], columns[:, None, :]]


def draws(key: jax.Array, num_images: int, *, pad: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the crop and the flip of each image.

    Args:
      key: the key of the batch.
      num_images: number of images n.
      pad: number of pixels that are padded on each side.

    Returns:
      int32[n] first row and int32[n] first column of the crop in the padded image, in [0, 2 pad];
      bool[n] whether the crop is mirrored.
    """
    of_rows, of_columns, of_flips = jax.random.split(key, 3)
    tops = jax.random.randint(of_rows, (num_images,), 0, 2 * pad + 1)
    lefts = jax.random.randint(of_columns, (num_images,), 0, 2 * pad + 1)
    return tops, lefts, jax.random.bernoulli(of_flips, 0.5, (num_images,))
