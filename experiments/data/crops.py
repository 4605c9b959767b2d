"""The part of an image that a network sees: a random crop in training, else the centre.

The random crop is the one that has been usual since Szegedy et al. (2015), "Going deeper with
convolutions", section 6, in torchvision's form (`RandomResizedCrop`): ten tries, then the centre.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

from experiments.data.jpeg import Encoded, decoded, opened

EVAL_FRACTION = 0.875  # evaluation crops 224 of 256: He et al. (2016), "Deep residual learning"


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def train_image(data: bytes, rng: np.random.Generator, size: int = 224) -> np.ndarray:
    """Decodes an image, takes a random crop and flips it with probability 1/2.

    Args:
      data: content of a JPEG or PNG file.
      rng: draws the crop, then the flip.
      size: height and width of the result, at least 1.

    Returns:
      uint8[size, size, 3] in RGB.

    Raises:
      UnreadableError: the file cannot be decoded.
    """
    image = opened(data)
    box = random_box(rng, image.height, image.width)
    pixels = resized(_decoded_crop(image, box, size), size, size)
    return cv2.flip(pixels, 1) if rng.random() < 0.5 else pixels


def crop_of(data: bytes, box: Box, size: int = 224) -> np.ndarray:
    """Decodes an image and resizes a given box of it; what `train_image` does without chance.

    Args:
      data: content of a JPEG or PNG file.
      box: inside the image.
      size: height and width of the result, at least 1.

    Returns:
      uint8[size, size, 3] in RGB.

    Raises:
      UnreadableError: the file cannot be decoded.
    """
    return resized(_decoded_crop(opened(data), box, size), size, size)


def eval_image(data: bytes, size: int = 224) -> np.ndarray:
    """Decodes an image, resizes its shorter side to `size / 0.875`, and takes the centre.

    Args:
      data: content of a JPEG or PNG file.
      size: height and width of the result, at least 1; 224 resizes to 256.

    Returns:
      uint8[size, size, 3] in RGB.

    Raises:
      UnreadableError: the file cannot be decoded.
    """
    image = opened(data)
    shorter = round(size / EVAL_FRACTION)
    scale = shorter / min(image.height, image.width)
    height, width = (max(round(side * scale), shorter) for side in (image.height, image.width))
    whole = Box(0, 0, image.height, image.width)
    pixels = resized(_decoded_crop(image, whole, shorter), height, width)
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


def random_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draws the box of a random resized crop.

    The area is uniform in `scale` times the image's. The ratio of width to height is uniform in its
    logarithm. If ten such boxes do not fit, the box is the largest one in the centre whose ratio is
    in range.

    Args:
      rng: source of the draws.
      height: of the image.
      width: of the image.
      scale: least and greatest share of the area, in (0, 1].
      ratio: least and greatest width / height.

    Returns:
      A box inside the image, of at least one pixel.
    """
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(*log_ratio))
        box_width, box_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return Box(top, left, box_height, box_width)
    return central_box(height, width, ratio)


def central_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    """Returns the largest box in the centre whose width / height is in a range.

    >>> central_box(100, 400, (3 / 4, 4 / 3))
    Box(top=0, left=133, height=100, width=133)
    >>> central_box(100, 100, (3 / 4, 4 / 3))
    Box(top=0, left=0, height=100, width=100)
    """
    box_width = min(width, max(round(height * ratio[1]), 1))
    box_height = min(height, max(round(width / ratio[0]), 1))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image; pixels are averaged where it shrinks.

    Area averaging lets every pixel of the source count. Bilinear interpolation reads four of them
    whatever the factor, so that fine texture would turn into noise. OpenCV averages only if no side
    grows; otherwise the interpolation is bilinear.

    Args:
      pixels: uint8[any height, any width, 3].
      height: of the result, at least 1.
      width: of the result, at least 1.

    Returns:
      uint8[height, width, 3].
    """
    shrinks = pixels.shape[0] >= height and pixels.shape[1] >= width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(pixels, (width, height), interpolation=how)


def reduction(height: int, width: int, least: int) -> int:
    """Returns the largest of 8, 4, 2 and 1 by which both sides stay at least `least`.

    JPEG has other factors, but their transforms have no fast code and cost more than they save.

    >>> [reduction(500, 375, least) for least in (46, 47, 187, 188, 1000)]
    [8, 4, 2, 1, 1]
    """
    return next((by for by in (8, 4, 2) if min(height, width) >= by * least), 1)


def _decoded_crop(image: Encoded, box: Box, least: int) -> np.ndarray:
    """Decodes a box of an image, reduced if both of its sides keep at least `least` pixels."""
    pixels = decoded(image, reduction(box.height, box.width, least))
    down, right = pixels.shape[0] / image.height, pixels.shape[1] / image.width
    top, left = round(box.top * down), round(box.left * right)
    bottom = max(round((box.top + box.height) * down), top + 1)
    end = max(round((box.left + box.width) * right), left + 1)
    return pixels[top:bottom, left:end]
