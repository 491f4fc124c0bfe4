"""What stays of an image when it is saved again, resized or made brighter: near-duplicates have nearly the same fingerprint.

The signs of the image's 16 x 16 lowest frequencies (a discrete cosine transform), in whole numbers, so that every machine finds the
same ones. After Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, with four times its bits: slices of
different patients show the same anatomy, and 64 bits do not tell them apart.
"""

import numpy as np
from jaxtyping import Float
from PIL import Image

from unimed.data import images

SIDE = 16
"""Frequencies a side; a fingerprint has SIDE x SIDE bits."""

_CELLS = 64
"""The image is averaged into this many cells a side first."""

_STRIDE = 37
"""From one bit of the text to the next, in the grid of frequencies: high ones flip first and shall not lie side by side."""

_LEAST_SHARE, _LEAST_STEP = 1 / 8, 4
"""What makes an image more than near-blank: so many of its cells are so many grey levels away from the median."""


def _waves() -> Float[np.ndarray, "side cells"]:
    """The cosines, as 12-bit whole numbers; float64 holds their sums exactly and multiplies faster than int64."""
    frequency, cell = np.arange(SIDE)[:, None], np.arange(_CELLS)
    return np.rint(2**12 * np.cos(np.pi * frequency * (2 * cell + 1) / (2 * _CELLS)))


_WAVES = _waves()
_ORDER = np.arange(SIDE**2) * _STRIDE % SIDE**2


def fingerprint(image: Image.Image) -> str:
    """The fingerprint as hexadecimal digits; empty for an image that is near-blank, since those look alike without being so."""
    plain = image if image.mode in ("L", "RGB") else images.rgb(image)
    cells = np.asarray(plain.resize((_CELLS, _CELLS), Image.Resampling.BOX).convert("L"), dtype=np.float64)
    if np.mean(abs(cells - np.median(cells)) > _LEAST_STEP) < _LEAST_SHARE:
        return ""
    signs = (_WAVES @ cells @ _WAVES.T).ravel()[_ORDER] > 0
    return np.packbits(signs).tobytes().hex()
