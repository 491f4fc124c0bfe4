"""Masks: PNG files in, COCO run-length strings kept, boolean pixels out."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Shaped
from pycocotools import mask as coco

from unimed.data import images
from unimed.errors import InputError

Pixels = Bool[np.ndarray, "height width"]
_LONGEST_CODE = 6
"""Characters one run length may take: 30 bits, more pixels than any image that is let in."""


def from_png(content: bytes, name: str, max_pixels: int) -> Pixels:
    """The foreground of a mask file with values {0, 1} or {0, 255}.

    Raises InputError naming `name` when the file does not decode, holds colours or other values, or has no foreground.
    """
    pixels = _one_channel(np.asarray(images.decode(content, name, max_pixels)), name)
    top = int(pixels.max())
    if top == 0:
        raise InputError(f"{name}: expected at least one foreground pixel, found an empty mask")
    if top not in (1, 255) or np.count_nonzero(pixels) != np.count_nonzero(pixels == top):
        found = ", ".join(str(value) for value in np.unique(pixels)[:5].tolist())
        raise InputError(f"{name}: expected values 0 and 1, or 0 and 255, found {found}")
    return pixels != 0


def _one_channel(pixels: Shaped[np.ndarray, "height width *channels"], name: str) -> Shaped[np.ndarray, "height width"]:
    if pixels.ndim == 2:
        return pixels
    colours = pixels[..., : 1 if pixels.shape[2] == 2 else 3]
    if (colours != colours[..., :1]).any():
        raise InputError(f"{name}: expected a mask with one channel, found colours")
    return colours[..., 0]


def encode(mask: Pixels) -> str:
    """The mask as COCO compressed run lengths, column by column."""
    counts = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts if isinstance(counts, str) else counts.decode("ascii")


def decode(rle: str, height: int, width: int) -> Pixels:
    """The pixels of COCO compressed run lengths. Raises InputError when the runs do not fill `height` x `width`.

    Not `pycocotools.mask.decode`: it leaves memory as it was found where runs end early.
    """
    lengths = _lengths(rle)
    if lengths.min(initial=0) < 0 or lengths.sum() != height * width:
        raise InputError(f"mask {rle[:20]!r}: expected run lengths of {height} x {width} pixels, found {lengths.sum()} pixels")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def union(rles: Sequence[str], height: int, width: int) -> Pixels:
    """The pixels that any of the masks covers; no mask at all gives an empty one."""
    covered = np.zeros((height, width), dtype=bool)
    for rle in rles:
        covered |= decode(rle, height, width)
    return covered


def _lengths(rle: str) -> Int[np.ndarray, " run"]:
    """Run lengths from COCO's text: 5 bits a character, the sixth says that more follow, from the fourth run on a difference.

    pycocotools, common/maskApi.c, rleFrString.
    """
    codes = np.frombuffer(rle.encode("ascii", "replace"), dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    if not len(ends) or ends[-1] != len(codes) - 1 or codes.min() < 0 or codes.max() > 63:
        raise InputError(f"mask {rle[:20]!r}: expected COCO run lengths, found other text")
    starts = np.append(0, ends[:-1] + 1)
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if place.max() >= _LONGEST_CODE:
        raise InputError(f"mask {rle[:20]!r}: expected run lengths below 2**{5 * _LONGEST_CODE - 1}, found a longer one")
    lengths = np.add.reduceat((codes & 31) << (5 * place), starts)
    lengths -= np.where(codes[ends] & 16, 1 << (5 * (place[ends] + 1)), 0)
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths
