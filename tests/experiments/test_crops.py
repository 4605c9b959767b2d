import math

import numpy as np
import pytest

from experiments.data.crops import (
    Box,
    central_box,
    eval_image,
    random_box,
    reduction,
    resized,
    train_image,
)
from tests.experiments import stored_images as stored


def rng(seed=0):
    return np.random.default_rng(seed)


def test_random_boxes_have_the_published_distribution():
    draws, height, width = rng(), 300, 400
    boxes = [random_box(draws, height, width) for _ in range(4000)]
    for box in boxes:
        assert 0 <= box.top <= box.top + box.height <= height
        assert 0 <= box.left <= box.left + box.width <= width
    areas = np.array([box.height * box.width for box in boxes]) / (height * width)
    ratios = np.array([box.width / box.height for box in boxes])
    assert 0.078 < areas.min() < 0.1 and 0.95 < areas.max() <= 1
    assert 0.74 < ratios.min() and ratios.max() < 1.35
    # Boxes of a small area always fit: their area is uniform, their ratio symmetric in its log.
    small = areas < 0.5
    assert abs(areas[small].mean() - 0.29) < 0.01
    assert abs(np.log(ratios[small]).mean()) < 0.02
    assert abs(np.log(ratios[small]).std() - math.log(4 / 3) / math.sqrt(3)) < 0.01
    # Each free place is as likely as any other.
    places = np.array([box.left / (width - box.width) for box in boxes if box.width < width])
    assert abs(places.mean() - 0.5) < 0.02
    assert abs(places.std() - 1 / math.sqrt(12)) < 0.02


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_a_box_fits_into_any_image(height, width):
    for seed in range(20):
        box = random_box(rng(seed), height, width)
        assert box.height >= 1 and box.width >= 1
        assert box.top + box.height <= height and box.left + box.width <= width


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 400, Box(0, 133, 100, 133)),  # too wide: 4/3 of its height
        (400, 100, Box(133, 0, 133, 100)),  # too high: width / (3/4)
        (100, 120, Box(0, 0, 100, 120)),  # all of it
    ],
)
def test_the_box_in_the_centre(height, width, expected):
    assert central_box(height, width, (3 / 4, 4 / 3)) == expected


def test_ten_tries_and_then_the_centre():
    # No box with a ratio of at most 4/3 has 8 % of the area of a strip.
    assert random_box(rng(), 10, 1000) == central_box(10, 1000, (3 / 4, 4 / 3))


def test_shrinking_averages_and_growing_interpolates():
    board = (np.indices((8, 8)).sum(0) % 2 * 200).astype(np.uint8)[..., None].repeat(3, -1)
    np.testing.assert_array_equal(resized(board, 2, 2), np.full((2, 2, 3), 100, np.uint8))
    np.testing.assert_array_equal(resized(board, 8, 8), board)
    assert resized(board, 16, 4).shape == (16, 4, 3)  # one side grows


def test_evaluation_takes_the_centre():
    picture = stored.pixels(2, 320, 512)
    image = eval_image(stored.encoded(picture), 224)
    # The shorter side becomes 256, so the centre of 224 is the centre of 280 of the picture.
    expected = resized(picture[20:300, 116:396], 224, 224)
    assert image.shape == (224, 224, 3)
    assert np.abs(image.astype(int) - expected).mean() < 1.5


@pytest.mark.parametrize(
    ("size", "least", "by"), [((375, 500), 256, 1), ((1040, 1200), 256, 4), ((2048, 2048), 256, 8)]
)
def test_an_image_is_reduced_while_both_sides_stay_large_enough(size, least, by):
    assert reduction(*size, least) == by


def test_evaluation_of_a_large_image():
    picture = stored.pixels(2, 1040, 1200)  # decoded at a quarter
    image = eval_image(stored.encoded(picture), 224)
    expected = resized(picture[65:975, 145:1055], 224, 224)
    assert np.abs(image.astype(int) - expected).mean() < 1.5


def test_training_crops_what_it_draws_and_flips_half():
    picture = stored.pixels(4, 200, 300)
    data, flipped = stored.encoded(picture), 0
    for seed in range(40):
        image = train_image(data, rng(seed), 32)
        box = random_box(rng(seed), 200, 300)
        cut = picture[box.top : box.top + box.height, box.left : box.left + box.width]
        expected = resized(cut, 32, 32).astype(int)
        differences = [np.abs(image - expected[:, ::step]).mean() for step in (1, -1)]
        assert min(differences) < 4
        flipped += differences[1] < differences[0]
    assert 12 <= flipped <= 28


def test_a_seed_gives_one_crop():
    data = stored.encoded(stored.pixels(4))
    one, same, other = (train_image(data, rng(seed), 16) for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
