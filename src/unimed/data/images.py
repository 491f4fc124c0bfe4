"""Images from bytes: decoded to the last pixel, bounded in size, and seen as 8-bit RGB whatever their mode."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from unimed.errors import InputError

_FORMATS = ("PNG", "JPEG")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def decode(content: bytes, name: str, max_pixels: int) -> Image.Image:
    """The fully decoded PNG or JPEG, in its own mode.

    Raises InputError naming `name` when the bytes are no image, end early, or hold more than `max_pixels`, which is
    read from the header before anything is unpacked.
    """
    with _readable(name):
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    if image.width * image.height > max_pixels:
        raise InputError(f"{name}: expected at most {max_pixels} pixels, found {image.width} x {image.height}")
    return whole(image, name)


def whole(image: Image.Image, name: str) -> Image.Image:
    """The image with all its pixels in memory. Raises InputError naming `name` for one that is broken."""
    with _readable(name):
        image.load()
    return image


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: expected a PNG or JPEG, found bytes of neither") from error
    except _BROKEN as error:
        raise InputError(f"{name}: expected a whole PNG or JPEG, found a broken one ({error})") from error


def rgb(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB: more than 8 bits are scaled by their own minimum and maximum, transparency lies on black."""
    if image.mode.startswith(("I", "F")):
        return _scaled(np.asarray(image, dtype=np.float32)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _scaled(pixels: np.ndarray) -> Image.Image:
    low, high = float(pixels.min()), float(pixels.max())
    span = high - low if high > low else 1.0
    return Image.fromarray(np.round((pixels - low) * (255 / span)).astype(np.uint8))
