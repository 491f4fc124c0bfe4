"""Text burned into an image, by its look alone: small bright or dark shapes of one height, one contrast and one baseline, side by side."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8
from scipy import ndimage

_WIDEST_STROKE = 9
"""Pixels; what is wider in both directions is background, so that only strokes stand out of it."""

_CONTRASTS = (40, 80, 120, 160)
"""Grey levels that a stroke stands out by. Letters that touch at one are apart at another."""

_HEIGHTS = (5, 64)
_WIDEST = 1.5
"""Width of a glyph over its height: a W, or two letters that touch."""

_SHARP, _FAR = 0.5, 1.25
"""Share of a glyph's pixels that stand out by this much more still. Ink has edges; speckle fades."""

_GAP, _LEAST_HEIGHT, _LEAST_CONTRAST, _UNEVEN = 0.7, 0.65, 0.75, 0.08
"""Neighbours in a row: distance and difference of baselines over the larger height, the smaller height and contrast over the larger."""

_FARTHEST_BASELINE = 5


@dataclass(frozen=True, slots=True)
class _Shapes:
    """Shapes that may be glyphs, ordered by baseline and then from left to right; ends lie one pixel behind."""

    bottom: Int[np.ndarray, " shape"]
    left: Int[np.ndarray, " shape"]
    right: Int[np.ndarray, " shape"]
    height: Int[np.ndarray, " shape"]
    contrast: Int[np.ndarray, " shape"]


def longest_row(grey: UInt8[np.ndarray, "height width"]) -> int:
    """The most shapes that stand beside each other as letters and digits do, bright on dark or dark on bright; at least 4 are text.

    Time grows hardly faster than the number of pixels, whatever the image shows.
    """
    reliefs = [ndimage.white_tophat(pixels, size=(_WIDEST_STROKE, _WIDEST_STROKE), mode="nearest") for pixels in (grey, 255 - grey)]
    return max(_longest(_shapes(relief, contrast), grey.shape[1]) for relief in reliefs for contrast in _CONTRASTS)


def _shapes(relief: UInt8[np.ndarray, "height width"], contrast: int) -> _Shapes:
    """What stands out by a contrast and has the size and the edges of a glyph."""
    labels, count = ndimage.label(relief >= contrast, np.ones((3, 3)))
    found = [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in ndimage.find_objects(labels)]
    top, bottom, left, right = np.array(found, dtype=np.int64).reshape(-1, 4).T
    height, width = bottom - top, right - left
    sharp = _sums(labels, relief >= _FAR * contrast, count) >= _SHARP * _sums(labels, relief >= contrast, count)
    fits = sharp & (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1]) & (width <= _WIDEST * height)
    peak = np.zeros(count + 1, dtype=np.int64)
    np.maximum.at(peak, labels[labels > 0], relief[labels > 0])
    order = np.flatnonzero(fits)[np.lexsort((left[fits], bottom[fits]))]
    return _Shapes(bottom[order], left[order], right[order], height[order], peak[1:][order])


def _sums(labels: np.ndarray, counted: Bool[np.ndarray, "height width"], count: int) -> Int[np.ndarray, " shape"]:
    return np.bincount(labels[counted], minlength=count + 1)[1:]


def _longest(shapes: _Shapes, image_width: int) -> int:
    """The shapes in the longest chain of neighbours."""
    ahead = _following(shapes, image_width)
    length = np.ones(len(ahead), dtype=np.int64)
    while (going := np.flatnonzero(ahead >= 0)).size:  # twice as far in each round
        length[going] += length[ahead[going]]
        ahead[going] = ahead[ahead[going]]
    return int(length.max(initial=0))


def _following(shapes: _Shapes, image_width: int) -> Int[np.ndarray, " shape"]:
    """The number of the nearest shape that goes on a row to the right of each shape, -1 where none does."""
    count = len(shapes.left)
    following, nearest = np.full(count, -1), np.full(count, np.inf)
    line = image_width + 1
    places = shapes.bottom * line + shapes.left
    for shift in range(-_FARTHEST_BASELINE, _FARTHEST_BASELINE + 1):
        other = np.searchsorted(places, (shapes.bottom + shift) * line + shapes.right)
        there = other < count
        other[~there] = 0
        gap = shapes.left[other] - shapes.right
        goes_on = there & (shapes.bottom[other] == shapes.bottom + shift) & (gap < nearest) & _alike(shapes, other, gap, abs(shift))
        following[goes_on], nearest[goes_on] = other[goes_on], gap[goes_on]
    return following


def _alike(shapes: _Shapes, other: Int[np.ndarray, " shape"], gap: Int[np.ndarray, " shape"], shift: int) -> Bool[np.ndarray, " shape"]:
    """Whether each shape and its other are neighbours in a row of text."""
    heights, contrasts = ((values, values[other]) for values in (shapes.height, shapes.contrast))
    tall, small = np.maximum(*heights), np.minimum(*heights)
    even = (shift <= np.maximum(1, _UNEVEN * tall)) & (np.minimum(*contrasts) >= _LEAST_CONTRAST * np.maximum(*contrasts))
    return even & (gap <= _GAP * tall) & (small >= _LEAST_HEIGHT * tall)
