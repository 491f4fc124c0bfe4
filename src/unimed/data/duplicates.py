"""Near-duplicates: images of different cases with fingerprints a few bits apart, found by bands in DuckDB, never by comparing all pairs."""

import logging
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

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

_FINGERPRINTS = """
    CREATE OR REPLACE TEMP TABLE fingerprints AS
    SELECT sample_id, (row_number() OVER ())::UINTEGER AS image, hash({apart}) AS apart,
        ('0x' || substr(fingerprint, 1, 16))::UBIGINT AS word0, ('0x' || substr(fingerprint, 17, 16))::UBIGINT AS word1,
        ('0x' || substr(fingerprint, 33, 16))::UBIGINT AS word2, ('0x' || substr(fingerprint, 49, 16))::UBIGINT AS word3
    FROM samples WHERE fingerprint != ''
"""

_BANDED = "CREATE OR REPLACE TEMP TABLE banded AS SELECT image, apart, {band} AS band, {word} AS word FROM fingerprints"

_POPULAR = "CREATE OR REPLACE TEMP TABLE popular AS SELECT band FROM banded GROUP BY band HAVING count(*) > $most"

_COMMON = "SELECT apart FROM fingerprints GROUP BY apart ORDER BY count(*) DESC, apart LIMIT 1"

# One of two that are apart is not of what is most common, and fewer are looked up faster.
# Whatever lies in the rows of this join is copied for hundreds of millions of pairs: numbers only, and of the fingerprint one word,
# in which all but a few in a million of the others already differ too much.
_COMPARED = """
    INSERT INTO maybe SELECT one.image, other.image FROM {one} AS one JOIN (FROM banded WHERE apart != $common) AS other USING (band)
    WHERE one.apart != other.apart AND (one.image < other.image OR one.apart = $common)
        AND bit_count(xor(one.word, other.word)) <= $distance
"""

_ALIKE = f"""
    CREATE OR REPLACE TEMP TABLE near_duplicates AS
    SELECT least(one.sample_id, other.sample_id) AS one, greatest(one.sample_id, other.sample_id) AS other
    FROM (SELECT DISTINCT one, other FROM maybe) AS pair JOIN fingerprints AS one ON pair.one = one.image
    JOIN fingerprints AS other ON pair.other = other.image
    WHERE $distance >= {" + ".join(f"bit_count(xor(one.word{word}, other.word{word}))" for word in range(_BITS // _WORD))}
    ORDER BY ALL
"""

_PAIRS = """
    SELECT DISTINCT one.dataset, one."case", other.dataset, other."case" FROM near_duplicates AS near
    JOIN samples AS one ON near.one = one.sample_id JOIN samples AS other ON near.other = other.sample_id
"""


def find(connection: "duckdb.DuckDBPyConnection", apart: str) -> None:
    """Make the table near_duplicates of the view samples: pairs of ids, `one` and `other`, that differ in the columns `apart`.

    Of two fingerprints at most DISTANCE bits apart, one of DISTANCE + 1 bands is the same in both: only those are compared.
    """
    connection.execute(_FINGERPRINTS.format(apart=apart))
    common = connection.execute(_COMMON).fetchone()
    compared = {"distance": DISTANCE, "common": common[0] if common else 0}
    connection.execute("CREATE OR REPLACE TEMP TABLE maybe (one UINTEGER, other UINTEGER)")
    for first, end in pairwise(_BITS * number // (DISTANCE + 1) for number in range(DISTANCE + 2)):
        far = (first // _WORD + 2) % (_BITS // _WORD)
        connection.execute(_BANDED.format(band=_band(first, end), word=f"word{far}"))
        connection.execute(_POPULAR, {"most": MOST})
        passed_over = len(connection.sql("FROM popular").fetchall())
        if passed_over:
            log.warning("near-duplicates: %d parts of fingerprints are those of over %d images and were not compared", passed_over, MOST)
        one = "(FROM banded ANTI JOIN popular USING (band))" if passed_over else "banded"
        connection.execute(_COMPARED.format(one=one), compared)
    connection.execute(_ALIKE, {"distance": DISTANCE})
    for table in ("fingerprints", "banded", "popular", "maybe"):
        connection.execute(f"DROP TABLE {table}")


def _band(first: int, end: int) -> str:
    """SQL for some bits of a fingerprint as a number, from one word or from two that follow each other."""
    word, start = divmod(first, _WORD)
    length, beyond = end - first, start + (end - first) - _WORD
    mask = 2**length - 1
    if beyond <= 0:
        return f"((word{word} >> {-beyond}) & {mask})::UINTEGER"
    return f"(((word{word} & {2 ** (length - beyond) - 1}) << {beyond}) | (word{word + 1} >> {_WORD - beyond}))::UINTEGER"


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
