"""Decodes the images of ImageNet: simplejpeg where it can, Pillow for the odd files.

Nearly all files are JPEGs in colour or grey. In the official set, some are CMYK and one is a PNG
that is named .JPEG.
"""

import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image


class UnreadableError(ValueError):
    """An image that neither decoder can read; the message has the reason."""


class Encoded(NamedTuple):
    """An image before it is decoded.

    Attributes:
      data: content of the file.
      height: of the whole image, in pixels.
      width: of the whole image, in pixels.
      plain: True if it is a JPEG in colour or grey, which simplejpeg decodes.
    """

    data: bytes
    height: int
    width: int
    plain: bool


def opened(data: bytes) -> Encoded:
    """Reads the header of an image.

    Args:
      data: content of a JPEG or PNG file.

    Raises:
      UnreadableError: it has no header of either kind.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        image = _pillow_image(data)
        return Encoded(data, image.height, image.width, plain=False)
    # Pillow converts CMYK more exactly.
    return Encoded(data, int(height), int(width), plain=colours not in ("CMYK", "YCCK"))


def decoded(image: Encoded, reduce: int = 1) -> np.ndarray:
    """Decodes an image, optionally at a reduced size.

    A JPEG is reduced while it is decoded, which costs less than to decode all pixels. Each pixel
    is then the average of `reduce` x `reduce` of them, but for what JPEG's own blur does.

    Args:
      image: from `opened`.
      reduce: 1, 2, 4 or 8. It is a wish: a file that Pillow decodes comes at full size.

    Returns:
      uint8[height, width, 3] in RGB, both sides divided by `reduce` and rounded up. A grey image
      has three equal channels, and transparency is dropped.

    Raises:
      UnreadableError: the file is truncated, or damaged in another way.
    """
    if image.plain:
        least = (-(-image.height // reduce), -(-image.width // reduce))
        try:
            return simplejpeg.decode_jpeg(
                image.data, "RGB", min_height=least[0], min_width=least[1], min_factor=reduce
            )
        except ValueError:
            pass  # strict about what other decoders forgive; Pillow has the last word
    pillow_image = _pillow_image(image.data)
    try:
        return np.asarray(pillow_image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # a broken PNG raises SyntaxError
        raise UnreadableError(str(error)) from error


def _pillow_image(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    except (OSError, ValueError, SyntaxError) as error:
        # Pillow's message would hold the address of the buffer, another one in each run.
        raise UnreadableError("neither a JPEG nor a PNG") from error
