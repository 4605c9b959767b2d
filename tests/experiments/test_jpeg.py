import numpy as np
import pytest

from experiments.data.jpeg import UnreadableError, decoded, opened
from tests.experiments import stored_images as stored

PICTURE = stored.pixels(3)  # 60 x 80


def read(data, reduce=1):
    image = opened(data)
    assert (image.height, image.width) == (60, 80)
    pixels = decoded(image, reduce)
    assert pixels.dtype == np.uint8
    return pixels


def error(pixels, expected):
    """The mean absolute difference of two images."""
    return np.abs(pixels.astype(int) - expected.astype(int)).mean()


@pytest.mark.parametrize(
    ("mode", "kind", "plain"),
    [("RGB", "JPEG", True), ("L", "JPEG", True), ("CMYK", "JPEG", False), ("RGB", "PNG", False)],
)
def test_every_kind_of_file_becomes_rgb(mode, kind, plain):
    data = stored.encoded(PICTURE, mode, kind)
    assert opened(data).plain == plain
    pixels = read(data)
    assert pixels.shape == (60, 80, 3)
    if mode == "L":
        assert (pixels == pixels[..., :1]).all()
        grey = PICTURE @ np.array([0.299, 0.587, 0.114])
        assert error(pixels[..., 0], grey) < 1.5
    else:
        assert error(pixels, PICTURE) < 1.5


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_a_reduced_image_is_the_average_of_blocks(reduce):
    pixels = read(stored.encoded(PICTURE), reduce)
    assert pixels.shape == (-(-60 // reduce), 80 // reduce, 3)
    rows = 60 // reduce * reduce
    blocks = PICTURE[:rows].reshape(rows // reduce, reduce, 80 // reduce, reduce, 3).mean((1, 3))
    assert error(pixels[: rows // reduce], blocks) < 1.5


def test_what_cannot_be_read():
    data = stored.encoded(PICTURE)
    with pytest.raises(UnreadableError, match="truncated"):
        read(data[: len(data) // 2])
    for content in (b"", b"GIF89a", data[:10]):
        with pytest.raises(UnreadableError, match="neither a JPEG nor a PNG|truncated"):
            decoded(opened(content))
    png = stored.encoded(PICTURE, kind="PNG")
    with pytest.raises(UnreadableError):
        read(png[: len(png) // 2])
