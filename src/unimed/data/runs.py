"""Many masks measured from their run lengths at once, without unpacking a pixel: area, box and connected components."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MEASURES = pa.schema(
    [("unpacks", pa.bool_()), ("area_px", pa.int64()), *((name, pa.int32()) for name in ("components", "left", "top", "right", "bottom"))]
)
_AT_ONCE = 512
"""Masks measured together: few enough to stay in the processor's cache, which is worth a quarter."""

_LONGEST_CODE = 6
"""Characters a run length may take, as in masks.py."""

Ints = np.ndarray
"""Whole numbers, one a character, run or mask."""


@dataclass(frozen=True, slots=True)
class _Runs:
    """The foreground runs of several masks, column by column: the mask each belongs to, its first pixel and the one after its last."""

    mask: Ints
    start: Ints
    end: Ints


def measure(rles: pa.Array, heights: Ints, widths: Ints) -> pa.Table:
    """MEASURES of each mask, in order. A box ends before `right` and `bottom`; two pixels that touch at a corner are connected.

    `unpacks` says whether the runs fill the mask, as `masks.decode` asks; all else is 0 where they do not.
    """
    parts = [
        _measure(rles.slice(first, _AT_ONCE), heights[first : first + _AT_ONCE].astype(np.int64), widths[first : first + _AT_ONCE])
        for first in range(0, len(rles), _AT_ONCE)
    ]
    return pa.concat_tables([MEASURES.empty_table(), *parts])


def _measure(rles: pa.Array, heights: Ints, widths: Ints) -> pa.Table:
    count, heights, widths = len(rles), np.maximum(heights, 0), np.maximum(widths, 0).astype(np.int64)
    codes, first = _codes(rles)
    filled = np.flatnonzero((np.diff(first) > 0) & (heights > 0) & (widths > 0))
    unpacks = np.zeros(count, dtype=bool)
    unpacks[filled], runs = _unpacked(codes, first, filled, heights * widths)
    area = np.bincount(runs.mask, weights=runs.end - runs.start, minlength=count).astype(np.int64)
    pieces = _by_column(runs, heights)
    column = pieces.start // heights[pieces.mask]
    row = pieces.start - column * heights[pieces.mask]
    sides = {
        "left": _extreme(np.minimum, pieces.mask, column, count),
        "top": _extreme(np.minimum, pieces.mask, row, count),
        "right": _extreme(np.maximum, pieces.mask, column + 1, count),
        "bottom": _extreme(np.maximum, pieces.mask, row + pieces.end - pieces.start, count),
    }
    components = _components(pieces, column, heights, np.where(unpacks, heights * (widths + 1), 0))
    return pa.table({"unpacks": unpacks, "area_px": area, "components": components, **sides}, schema=MEASURES)


def _codes(rles: pa.Array) -> tuple[Ints, Ints]:
    """The six bits of every character, and where each mask's characters begin; the last entry is where they all end."""
    _, offsets, data = rles.buffers()
    first = np.frombuffer(offsets, dtype=np.int32)[rles.offset : rles.offset + len(rles) + 1].astype(np.int64)
    text = np.frombuffer(data, dtype=np.uint8)[first[0] : first[-1]] if data else np.empty(0, np.uint8)
    return text.astype(np.int64) - 48, first - first[0]


def _unpacked(codes: Ints, first: Ints, filled: Ints, pixels: Ints) -> tuple[np.ndarray, _Runs]:
    """Whether the runs of each mask in `filled` make up its `pixels`, and the foreground runs of those that do."""
    begins, stops = first[filled], first[filled + 1]
    if not len(filled):
        return np.empty(0, bool), _Runs(*(np.empty(0, np.int64) for _ in range(3)))
    last = codes & 32 == 0
    well_ended = last[stops - 1]
    last[stops - 1] = True
    kept = np.zeros(len(codes) + 1, dtype=np.int64)
    np.add.at(kept, begins, 1)
    np.add.at(kept, stops, -1)
    place_of_end = np.flatnonzero(last & (np.cumsum(kept[:-1]) > 0))
    lengths, longest = _lengths(codes, place_of_end, begins)
    base = np.searchsorted(place_of_end, begins)
    owner = np.repeat(np.arange(len(filled)), np.diff(np.append(base, len(place_of_end))))
    lengths = _summed(lengths, owner, base)
    legal = (np.minimum.reduceat(codes, begins) >= 0) & (np.maximum.reduceat(codes, begins) <= 63)
    short = np.maximum.reduceat(longest, base) <= _LONGEST_CODE
    fills = (np.minimum.reduceat(lengths, base) >= 0) & (np.add.reduceat(lengths, base) == pixels[filled])
    good = well_ended & legal & short & fills
    end = np.cumsum(np.where(good[owner], lengths, 0))
    before = (end - np.where(good[owner], lengths, 0))[base]
    foreground = good[owner] & ((np.arange(len(owner)) - base[owner]) % 2 == 1) & (lengths > 0)
    end = (end - before[owner])[foreground]
    return good, _Runs(filled[owner[foreground]], end - lengths[foreground], end)


def _lengths(codes: Ints, ends: Ints, begins: Ints) -> tuple[Ints, Ints]:
    """Each number that COCO's text holds, differences still, and how many characters it takes. Like `masks._lengths`, of many masks."""
    starts = np.append(0, ends[:-1] + 1)
    position = np.searchsorted(ends, begins)
    starts[position] = begins
    characters = ends - starts + 1
    total = np.zeros(len(ends), dtype=np.int64)
    for place in range(_LONGEST_CODE):
        there = characters > place
        total[there] += (codes[starts[there] + place] & 31) << (5 * place)
    return total - np.where(codes[ends] & 16, 1 << (5 * np.minimum(characters, _LONGEST_CODE)), 0), characters


def _summed(lengths: Ints, owner: Ints, base: Ints) -> Ints:
    """Run lengths from COCO's numbers: from the fourth run on each is a difference from the one before the last."""
    runs = np.diff(np.append(base, len(lengths)))
    number = np.arange(len(lengths)) - base[owner]
    odd = runs[owner] // 2
    order = base[owner] + np.where(number % 2, 1 + number // 2, np.where(number, odd + number // 2, 0))
    apart = np.empty_like(lengths)
    apart[order] = lengths
    running = np.cumsum(apart)
    starts = np.where(number % 2, base[owner] + 1, np.where(number, base[owner] + 1 + odd, base[owner]))
    return running[order] - running[starts] + apart[starts]


def _by_column(runs: _Runs, heights: Ints) -> _Runs:
    """The runs cut where a column ends."""
    height = heights[runs.mask]
    pieces = (runs.end - 1) // height - runs.start // height + 1
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    mask, height = np.repeat(runs.mask, pieces), np.repeat(height, pieces)
    column = np.repeat(runs.start, pieces) // height + number
    start = np.maximum(np.repeat(runs.start, pieces), column * height)
    return _Runs(mask, start, np.minimum(np.repeat(runs.end, pieces), (column + 1) * height))


def _extreme(which: np.ufunc, mask: Ints, values: Ints, count: int) -> Ints:
    """The least or greatest value of each mask; 0 where a mask has none."""
    found = np.zeros(count, dtype=np.int64)
    present, first = np.unique(mask, return_index=True)
    if len(present):
        found[present] = which.reduceat(values, first)
    return found


def _components(pieces: _Runs, column: Ints, heights: Ints, room: Ints) -> Ints:
    """Connected parts of each mask: pieces of neighbouring columns are joined where their rows overlap or touch at a corner.

    `room` is the pixels of each mask and of an empty column after it, which keeps the masks apart.
    """
    height = heights[pieces.mask]
    offset = (np.cumsum(room) - room)[pieces.mask]
    start, end, following = pieces.start + offset, pieces.end + offset, (column + 1) * height + offset
    low = np.searchsorted(end, np.maximum(start + height - 1, following), side="right")
    high = np.searchsorted(start, np.minimum(end + height + 1, following + height), side="left")
    reached = np.maximum(high - low, 0)
    one = np.repeat(np.arange(len(start)), reached)
    other = np.repeat(low, reached) + np.arange(reached.sum()) - np.repeat(np.cumsum(reached) - reached, reached)
    above = np.flatnonzero((end[:-1] == start[1:]) & (column[:-1] == column[1:]))  # a run of length 0 lies between them
    links = np.ones(len(one) + len(above), dtype=bool), (np.append(one, above), np.append(other, above + 1))
    _, labels = connected_components(coo_array(links, shape=(len(start), len(start))), directed=False)
    _, first = np.unique(labels, return_index=True)
    return np.bincount(pieces.mask[first], minlength=len(room))
