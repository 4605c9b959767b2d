"""The augmentation of CIFAR runs, on uint8 batches inside the jitted step: random crop and flip."""

import jax
import jax.numpy as jnp

MODES = ("reflect", "zero")


def crop_and_flip(
    key: jax.Array, step: jax.Array | int, images: jax.Array, *, mode: str, pad: int = 4
) -> jax.Array:
    """Pads every image, cuts its size out of it at random, and mirrors half of them left to right.

    Every image has its own draws: the offsets are uniform on the (2 pad + 1)^2 places, a flip has
    probability 1/2. They follow from the key and the step alone, so that a resumed run sees the
    images of the uninterrupted one.

    Args:
      key: for this alone; the same at every step.
      step: number of the step, folded into the key; an integer or an integer scalar.
      images: uint8[n, height, width, channels].
      mode: what lies around an image: "reflect", its mirror image about the outermost pixels
        (GraNet's CIFAR-10 runs), or "zero" (its CIFAR-100 runs).
      pad: pixels to pad on each of the four sides, at least 0; 0 only flips. With "reflect" it is
        below height and width.

    Returns:
      The batch: dtype and shape of `images`.

    Raises:
      ValueError: `mode` or `pad` is out of range.
    """
    height, width = images.shape[1:3]
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    if not 0 <= pad or (mode == "reflect" and pad >= min(height, width)):
        raise ValueError(
            f"pad is {pad}, expected at least 0, and with mode='reflect' below the size of the "
            f"images, {height} x {width}"
        )
    tops, lefts, flips = draws(jax.random.fold_in(key, step), len(images), pad=pad)
    around = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    padded = jnp.pad(images, around, mode="reflect" if mode == "reflect" else "constant")
    # A gather with the flip in its indices: on CPU a dynamic_slice under vmap takes longer.
    rows = tops[:, None] + jnp.arange(height)[None, :]
    columns = lefts[:, None] + jnp.arange(width)[None, :]
    columns = jnp.where(flips[:, None], columns[:, ::-1], columns)
    image = jnp.arange(len(images))
    return padded[image[:, None, None], rows[:, :, None], columns[:, None, :]]


def draws(key: jax.Array, num_images: int, *, pad: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What chance decides for each image.

    Args:
      key: of the batch.
      num_images: n.
      pad: pixels on each side.

    Returns:
      int32[n] first row and int32[n] first column in the padded image, in [0, 2 pad]; bool[n]
      whether the image is mirrored after that.
    """
    of_rows, of_columns, of_flips = jax.random.split(key, 3)
    tops = jax.random.randint(of_rows, (num_images,), 0, 2 * pad + 1)
    lefts = jax.random.randint(of_columns, (num_images,), 0, 2 * pad + 1)
    return tops, lefts, jax.random.bernoulli(of_flips, 0.5, (num_images,))
