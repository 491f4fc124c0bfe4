"""A slice with its true and its predicted mask, in colours that colour-blind readers tell apart."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from unimed.errors import InputError
from unimed.eval.metrics import Mask

TRUTH, PREDICTION = (86, 180, 233), (230, 159, 0)
"""Sky blue and orange of Okabe & Ito 2008, Color Universal Design; what is missed or extra wears the colour of the mask it belongs to."""
REGION = (0, 158, 115)
"""Bluish green of the same palette."""
_GAP_PX, _EDGE_PX = 4, 3


def panels(image: Image.Image, truth: Mask, prediction: Mask, panel_px: int = 240) -> Image.Image:
    """Four panels in a row: image, truth (blue), prediction (orange), difference (missed and extra).

    The longer side of each panel is `panel_px`; masks have the size of the image, and stay unsmoothed when enlarged.
    """
    for name, mask in (("truth", truth), ("prediction", prediction)):
        if mask.shape != (image.height, image.width):
            raise InputError(f"a {name} mask of {image.height} x {image.width} expected, found {mask.shape} (height, width)")
    plain = _sized(image, panel_px)
    size = plain.size
    true, predicted = (_resized(mask, size) for mask in (truth, prediction))
    difference = _tinted(_tinted(plain, true & ~predicted, TRUTH, 0.85), predicted & ~true, PREDICTION, 0.85)
    row = [plain, outlined(plain, true, TRUTH), outlined(plain, predicted, PREDICTION), difference]
    canvas = Image.new("RGBA", (4 * size[0] + 3 * _GAP_PX, size[1]), (0, 0, 0, 0))
    for place, panel in enumerate(row):
        canvas.paste(panel, (place * (size[0] + _GAP_PX), 0))
    return canvas


def outlined(image: Image.Image, mask: Mask, colour: tuple[int, int, int]) -> Image.Image:
    """The image with the mask's inner edge drawn three pixels wide and its inside lightly tinted.

    Mask and image have the same size.
    """
    inside = mask
    for _ in range(_EDGE_PX):
        inside = _eroded(inside)
    return _tinted(_tinted(image, inside, colour, 0.15), mask & ~inside, colour, 1.0)


def marked(image: Image.Image, marks: Sequence[tuple[Mask, tuple[int, int, int]]], longest_px: int) -> Image.Image:
    """The image with several masks outlined, later ones over earlier ones; its longer side is `longest_px`."""
    picture = _sized(image, longest_px)
    for mask, colour in marks:
        picture = outlined(picture, _resized(mask, picture.size), colour)
    return picture


def data_uri(image: Image.Image) -> str:
    """The image as text that an HTML page can show without a file beside it (WebP)."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=88, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _sized(image: Image.Image, longest_px: int) -> Image.Image:
    scale = longest_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _resized(mask: Mask, size: tuple[int, int]) -> Mask:
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def _tinted(image: Image.Image, mask: Mask, colour: tuple[int, int, int], strength: float) -> Image.Image:
    pixels = np.array(image.convert("RGB"), dtype=float)
    pixels[mask] += strength * (np.array(colour) - pixels[mask])
    return Image.fromarray(pixels.round().astype(np.uint8))


def _eroded(mask: Mask) -> Mask:
    """The mask without the pixels that touch its outside, the image's border included."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
