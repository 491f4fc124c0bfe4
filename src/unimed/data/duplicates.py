"""Near-duplicates: images of different cases with fingerprints a few bits apart, found by sorting bands, never by comparing all pairs."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, UInt32, UInt64

from unimed.data.fingerprints import SIDE
from unimed.data.splits import Case

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger(__name__)

DISTANCE = 12
"""Bits of 256 that two fingerprints may differ in: copies differ in up to 12 or so, other patients in 28 at least (docs/decisions/0012)."""

MOST = 10_000
"""Images that may share a band: a band that more of them have says nothing, and comparing all of those takes the square of it."""

_BITS, _WORD = SIDE**2, 64
_BANDS = tuple(pairwise(_BITS * number // (DISTANCE + 1) for number in range(DISTANCE + 2)))
"""First bit and end of each: of two fingerprints at most DISTANCE bits apart, one of DISTANCE + 1 bands is the same in both."""

_IMAGE = np.uint64(32)
"""Bits of a sorted key that number the image; the next one says whether it is of the commonest kind, and the band is above."""

_AT_ONCE = 4
"""Bands that are compared at a time, where there are so many cores: each takes some 30 bytes an image."""

_FINGERPRINTS = "SELECT hash({apart}) AS kind, unhex(fingerprint) AS bits FROM samples WHERE fingerprint != ''"

_NEAR_DUPLICATES = """
    CREATE OR REPLACE TEMP TABLE near_duplicates AS
    SELECT DISTINCT least(one, other) AS one, greatest(one, other) AS other FROM near_pairs ORDER BY ALL
"""

_PAIRS = """
    SELECT DISTINCT one.dataset, one."case", other.dataset, other."case" FROM near_duplicates AS near
    JOIN samples AS one ON near.one = one.sample_id JOIN samples AS other ON near.other = other.sample_id
"""


@dataclass(frozen=True, slots=True)
class _Images:
    """Fingerprints in words of 64 bits, and the kind of each image: two of one kind are no pair, however alike they are."""

    words: UInt64[np.ndarray, "words images"]
    kinds: UInt64[np.ndarray, " images"]
    common: Bool[np.ndarray, " images"]
    """Whether an image is of the commonest kind: one of two that are a pair is not, and fewer are looked up faster."""

    @classmethod
    def of(cls, rows: pa.Table) -> "_Images":
        """The images of a table of kinds and bytes."""
        bits = rows["bits"].cast(pa.binary(_BITS // 8)).combine_chunks()
        words = np.frombuffer(bits.buffers()[1], ">u8").reshape(-1, _BITS // _WORD).T.astype(np.uint64, order="C")
        kinds = rows["kind"].to_numpy()
        found, images = np.unique(kinds, return_counts=True)
        return cls(words, kinds, kinds == found[np.argmax(images)])

    def band(self, first: int, end: int) -> UInt64[np.ndarray, " images"]:
        """Some bits of each fingerprint as a number, from one word or from two that follow each other."""
        word, start = divmod(first, _WORD)
        beyond, mask = start + (end - first) - _WORD, np.uint64(2 ** (end - first) - 1)
        if beyond <= 0:
            return (self.words[word] >> np.uint64(-beyond)) & mask
        return ((self.words[word] << np.uint64(beyond)) | (self.words[word + 1] >> np.uint64(_WORD - beyond))) & mask

    def alike(self, one: UInt32[np.ndarray, " pairs"], other: UInt32[np.ndarray, " pairs"]) -> Bool[np.ndarray, " pairs"]:
        """Whether two images are of different kinds and at most DISTANCE bits apart."""
        differ = sum(np.bitwise_count(word[one] ^ word[other]).astype(np.uint16) for word in self.words)
        return (self.kinds[one] != self.kinds[other]) & (differ <= DISTANCE)


def find(connection: "duckdb.DuckDBPyConnection", apart: str) -> None:
    """Make the table near_duplicates of the view samples: pairs of ids, `one` and `other`, that differ in the columns `apart`."""
    rows = connection.sql(_FINGERPRINTS.format(apart=apart)).to_arrow_table()
    pairs = _pairs(_Images.of(rows)) if len(rows) else np.empty((2, 0), np.uint32)
    ids = connection.sql(f"SELECT sample_id FROM samples WHERE fingerprint != ''{'' if pairs.size else ' LIMIT 0'}").to_arrow_table()
    one, other = (ids["sample_id"].take(pa.array(numbers)) for numbers in pairs)
    connection.register("near_pairs", pa.table({"one": one, "other": other}))
    connection.execute(_NEAR_DUPLICATES)
    connection.unregister("near_pairs")


def _pairs(images: _Images) -> UInt32[np.ndarray, "2 pairs"]:
    """The numbers of all images that are alike, some of them several times."""
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as threads:
        found = list(threads.map(partial(_pairs_of_band, images), *zip(*_BANDS, strict=True)))
    return np.concatenate(found, axis=1)


def _pairs_of_band(images: _Images, first: int, end: int) -> UInt32[np.ndarray, "2 pairs"]:
    """Those that have one band in common: sorted by it they lie side by side, of each band those of the commonest kind last."""
    keys = images.band(first, end) << (_IMAGE + np.uint64(1)) | images.common.astype(np.uint64) << _IMAGE
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    image, band = keys.astype(np.uint32), (keys >> (_IMAGE + np.uint64(1))).astype(np.uint32)
    asked = np.flatnonzero((keys >> _IMAGE & np.uint64(1)) == 0)
    del keys
    asked = asked[~np.isin(band[asked], _popular(band))]
    # Of each fingerprint one word at first, in which all but a few in a million of the others already differ too much.
    word = images.words[(first // _WORD + 2) % len(images.words)][image]
    found = [np.empty((2, 0), np.uint32)]
    for one, other in _side_by_side(band, asked):
        close = np.bitwise_count(word[one] ^ word[other]) <= DISTANCE
        pair = np.stack([image[one[close]], image[other[close]]])
        found.append(pair[:, images.alike(*pair)])
    return np.concatenate(found, axis=1)


def _side_by_side(band: UInt32[np.ndarray, " images"], asked: Int[np.ndarray, " asked"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The places `asked` that have the same band as the next one, then as the next but one, and so on, each with that other."""
    for step in count(1):
        asked = asked[: np.searchsorted(asked, len(band) - step)]
        asked = asked[band[asked] == band[asked + step]]
        if not len(asked):
            return
        yield asked, asked + step


def _popular(band: UInt32[np.ndarray, " images"]) -> UInt32[np.ndarray, " popular"]:
    """The bands, of all in order, that more than MOST images have."""
    popular = np.unique(band[MOST:][band[MOST:] == band[:-MOST]])
    if len(popular):
        log.warning("near-duplicates: %d parts of fingerprints are those of over %d images and were not compared", len(popular), MOST)
    return popular


def groups(connection: "duckdb.DuckDBPyConnection") -> list[list[Case]]:
    """The cases of the view samples that near-duplicates tie together, also over others; a case tied to none is in no group."""
    find(connection, apart='dataset, "case"')
    pairs = connection.sql(_PAIRS).fetchall()
    return _tied([((row[0], row[1]), (row[2], row[3])) for row in pairs])


def _tied(pairs: list[tuple[Case, Case]]) -> list[list[Case]]:
    """The connected components of a graph, each in order."""
    near: dict[Case, list[Case]] = defaultdict(list)
    for one, other in pairs:
        near[one].append(other)
        near[other].append(one)
    found: list[list[Case]] = []
    seen: set[Case] = set()
    for case in sorted(near):
        reached, waiting = [], [] if case in seen else [case]
        seen.add(case)
        while waiting:
            reached.append(waiting.pop())
            further = [other for other in near[reached[-1]] if other not in seen]
            seen.update(further)
            waiting += further
        found += [sorted(reached)] if reached else []
    return found
