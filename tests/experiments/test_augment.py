import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.augment import crop_and_flip, draws


def oracle(image, top, left, flip, *, mode, pad):
    """Pixel by pixel: where each one of the output comes from."""
    height, width = image.shape[:2]
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y = top + row - pad
            x = left + (width - 1 - column if flip else column) - pad
            if mode == "reflect":
                y = -y if y < 0 else 2 * (height - 1) - y if y >= height else y
                x = -x if x < 0 else 2 * (width - 1) - x if x >= width else x
            if 0 <= y < height and 0 <= x < width:
                out[row, column] = image[y, x]
    return out


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(1, 256, (64, 6, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["reflect", "zero"])
@pytest.mark.parametrize("pad", [0, 4])
def test_pixel_by_pixel(key, images, mode, pad):
    got = jax.jit(crop_and_flip, static_argnames=("mode", "pad"))(
        key, 7, jnp.asarray(images), mode=mode, pad=pad
    )
    assert got.dtype == jnp.uint8
    tops, lefts, flips = (np.asarray(x) for x in draws(jax.random.fold_in(key, 7), 64, pad=pad))
    expected = [
        oracle(image, tops[i], lefts[i], flips[i], mode=mode, pad=pad)
        for i, image in enumerate(images)
    ]
    np.testing.assert_array_equal(got, np.stack(expected))


@pytest.mark.parametrize(
    ("mode", "top", "left", "expected"),
    [
        ("reflect", 0, 0, [[5, 4, 5], [2, 1, 2], [5, 4, 5]]),
        ("zero", 0, 0, [[0, 0, 0], [0, 1, 2], [0, 4, 5]]),
        ("zero", 1, 1, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        ("reflect", 2, 1, [[4, 5, 6], [7, 8, 9], [4, 5, 6]]),
    ],
)
def test_known_answers(key, mode, top, left, expected):
    nine = jnp.arange(1, 10, dtype=jnp.uint8).reshape(1, 3, 3, 1)
    for step in range(200):  # until chance wants this place, without and with the mirror
        (at_top,), (at_left,), (flip,) = draws(jax.random.fold_in(key, step), 1, pad=1)
        if (at_top, at_left) == (top, left):
            got = crop_and_flip(key, step, nine, mode=mode, pad=1)[0, :, :, 0]
            assert got.tolist() == ([row[::-1] for row in expected] if flip else expected)
            return
    raise AssertionError("no step has this place")


def test_all_places_come_up_equally_often_and_half_are_mirrored(key):
    tops, lefts, flips = (np.asarray(x) for x in draws(key, 8100, pad=4))
    counts = np.bincount(9 * tops + lefts, minlength=81)  # 100 expected, standard deviation 10
    assert len(counts) == 81
    assert 60 <= counts.min() and counts.max() <= 140
    assert abs(flips.mean() - 0.5) < 0.02  # standard deviation 0.0056
    for offset in range(9):  # independent of the place
        assert abs(flips[tops == offset].mean() - 0.5) < 0.08
        assert abs(flips[lefts == offset].mean() - 0.5) < 0.08


def test_key_and_step_decide_alone(key, images):
    augment = jax.jit(lambda key, step: crop_and_flip(key, step, jnp.asarray(images), mode="zero"))
    first = augment(key, 3)
    np.testing.assert_array_equal(first, augment(key, jnp.int32(3)))
    assert (first != augment(key, 4)).any()
    assert (first != augment(jax.random.key(1), 3)).any()


def test_draws_are_of_the_image_and_not_of_its_neighbours(key, images):
    changed = images.copy()
    changed[1:] = 0
    first, second = (
        crop_and_flip(key, 0, jnp.asarray(x), mode="reflect") for x in (images, changed)
    )
    np.testing.assert_array_equal(first[0], second[0])
    same = jnp.asarray(np.broadcast_to(images[:1], images.shape))
    assert len(np.unique(crop_and_flip(key, 0, same, mode="reflect"), axis=0)) > 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "edge"}, "mode 'edge' must be one of reflect, zero"),
        ({"mode": "zero", "pad": -1}, "pad -1 must be at least 0"),
        ({"mode": "reflect", "pad": 6}, "pad 6 must .* below the size of the images, 6 x 7"),
    ],
)
def test_out_of_range(key, images, options, message):
    with pytest.raises(ValueError, match=message):
        crop_and_flip(key, 0, jnp.asarray(images), **options)
