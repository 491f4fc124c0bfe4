"""Masks: PNG files in, COCO run-length strings kept, boolean pixels out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Shaped
from pycocotools import mask as coco

from unimed.data import images
from unimed.errors import InputError

Pixels = Bool[np.ndarray, "height width"]
_LONGEST_CODE = 6
"""Characters one run length may take: 30 bits, more pixels than any image that is let in."""


@dataclass(frozen=True, slots=True)
class Runs:
    """A mask as lengths of runs, column by column: background and foreground in turn, of which the first may be 0."""

    height: int
    width: int
    lengths: Int[np.ndarray, " run"]

    @property
    def area(self) -> int:
        """Pixels of the foreground."""
        return int(self.lengths[1::2].sum())

    @property
    def rle(self) -> str:
        """The lengths as COCO's compressed text."""
        counts = coco.frPyObjects({"size": [self.height, self.width], "counts": self.lengths.tolist()}, self.height, self.width)["counts"]
        return counts if isinstance(counts, str) else counts.decode("ascii")


def from_png(content: bytes, name: str, max_pixels: int) -> Runs:
    """The foreground of a mask file with values {0, 1} or {0, 255}.

    Raises InputError naming `name` when the file does not decode, holds colours or other values, or has no foreground.
    """
    image = images.decode(content, name, max_pixels)
    # What lies around the foreground is most of a mask, and looking at it costs more than all else but decoding.
    left, top, right, bottom = (image.mode == "L" and image.getbbox()) or (0, 0, *image.size)
    part = _one_channel(np.asarray(image.crop((left, top, right, bottom))), name)
    found, values = _runs(part, top, left, image.height, image.width)
    foreground = set(values.tolist()) - {0}
    if not foreground:
        raise InputError(f"{name}: expected at least one foreground pixel, found an empty mask")
    if foreground not in ({1}, {255}):
        told = ", ".join(str(value) for value in np.unique(np.asarray(image))[:5].tolist())
        raise InputError(f"{name}: expected values 0 and 1, or 0 and 255, found {told}")
    return found


def runs(mask: Pixels) -> Runs:
    """The run lengths of a mask's pixels."""
    height, width = mask.shape
    return _runs(mask, 0, 0, height, width)[0] if mask.size else Runs(height, width, np.zeros(1, dtype=np.int64))


def _runs(
    part: Shaped[np.ndarray, "rows columns"], top: int, left: int, height: int, width: int
) -> tuple[Runs, Shaped[np.ndarray, " change"]]:
    """Run lengths of an image with a part at `top` and `left` and 0 around it, and the values with which runs begin.

    Changes are looked for row by row, as pixels lie: to turn them round first would take longer than all the rest.
    """
    rows, columns = part.shape
    above, below = int(top > 0), int(top + rows < height)
    framed = np.zeros((above + rows + below, columns + 1), dtype=part.dtype)
    framed[above : above + rows, :columns] = part
    row, column = np.divmod(np.flatnonzero(framed[1:] != framed[:-1]), columns + 1)
    before = np.concatenate([framed[:1, :1] * 0, framed[-1:, :-1]], axis=1)  # the pixel that the top one of each column follows
    heads = np.flatnonzero(framed[:1] != before)
    starts = np.concatenate([(left + column) * height + top - above + row + 1, (left + heads) * height])
    values = np.concatenate([framed[row + 1, column], framed[0, heads]])
    starts = np.sort(starts[starts < height * width])
    return Runs(height, width, np.diff(np.concatenate([[0], starts, [height * width]]))), values


def _one_channel(pixels: Shaped[np.ndarray, "height width *channels"], name: str) -> Shaped[np.ndarray, "height width"]:
    if pixels.ndim == 2:
        return pixels
    colours = pixels[..., : 1 if pixels.shape[2] == 2 else 3]
    if (colours != colours[..., :1]).any():
        raise InputError(f"{name}: expected a mask with one channel, found colours")
    return colours[..., 0]


def encode(mask: Pixels) -> str:
    """The mask as COCO compressed run lengths, column by column."""
    return runs(mask).rle


def decode(rle: str, height: int, width: int) -> Pixels:
    """The pixels of COCO compressed run lengths. Raises InputError when the runs do not fill `height` x `width`.

    Not `pycocotools.mask.decode`: it leaves memory as it was found where runs end early.
    """
    lengths = _lengths(rle)
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise InputError(f"mask {rle[:20]!r}: expected run lengths of {height} x {width} pixels, found {lengths.sum()} pixels")
    foreground = np.zeros(len(lengths), dtype=bool)
    foreground[1::2] = True
    return foreground.repeat(lengths).reshape(width, height).T


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
    codes = np.frombuffer(rle.encode("ascii", "replace"), dtype=np.uint8) - 48  # what lies below wraps round, to far above 63
    if not len(codes) or codes[-1] > 31 or codes.max() > 63:
        raise InputError(f"mask {rle[:20]!r}: expected COCO run lengths, found other text")
    last, before = (codes < 32).nonzero()[0], (codes > 31).nonzero()[0]
    lengths = ((codes[last] ^ 16).view(np.int8) - 16).astype(np.int64)  # in most masks nearly all characters are last ones
    order = np.arange(len(before))
    run = before - order  # as many last characters come before it
    place = order - run.searchsorted(run)
    if place.max(initial=-1) >= _LONGEST_CODE - 1:
        raise InputError(f"mask {rle[:20]!r}: expected run lengths below 2**{5 * _LONGEST_CODE - 1}, found a longer one")
    lengths <<= 5 * np.bincount(run, minlength=len(lengths))
    np.add.at(lengths, run, (codes[before] & 31) << 5 * place)
    for first in (1, 2):
        lengths[first::2].cumsum(out=lengths[first::2])
    return lengths
