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

_DIGITS = SIDE**2 // 4

_FINGERPRINTS = """
    CREATE OR REPLACE TEMP TABLE fingerprints AS
    SELECT sample_id, dense_rank() OVER (ORDER BY dataset, "case") AS patient, fingerprint,
        ('0x' || substr(fingerprint, 1, 16))::UBIGINT AS a, ('0x' || substr(fingerprint, 17, 16))::UBIGINT AS b,
        ('0x' || substr(fingerprint, 33, 16))::UBIGINT AS c, ('0x' || substr(fingerprint, 49, 16))::UBIGINT AS d
    FROM samples WHERE fingerprint != ''
"""

_BANDED = "CREATE OR REPLACE TEMP TABLE banded AS SELECT *, substr(fingerprint, $first, $digits) AS band FROM fingerprints"

_POPULAR = "CREATE OR REPLACE TEMP TABLE popular AS SELECT band FROM banded GROUP BY band HAVING count(*) > $most"

_COMPARED = """
    INSERT INTO alike SELECT one.sample_id, other.sample_id
    FROM (FROM banded ANTI JOIN popular USING (band)) AS one JOIN banded AS other USING (band)
    WHERE one.patient < other.patient AND $distance >= bit_count(xor(one.a, other.a)) + bit_count(xor(one.b, other.b))
        + bit_count(xor(one.c, other.c)) + bit_count(xor(one.d, other.d))
"""

_PAIRS = """
    SELECT DISTINCT one.dataset, one."case", other.dataset, other."case" FROM near_duplicates AS near
    JOIN samples AS one ON near.one = one.sample_id JOIN samples AS other ON near.other = other.sample_id
"""


def find(connection: "duckdb.DuckDBPyConnection") -> None:
    """Make the table near_duplicates of the view samples: pairs of images, `one` and `other` by sample_id, that are of two cases.

    Of two fingerprints at most DISTANCE bits apart, one of DISTANCE + 1 bands is the same in both: only those are compared.
    """
    connection.execute(_FINGERPRINTS)
    connection.execute("CREATE OR REPLACE TEMP TABLE alike (one VARCHAR, other VARCHAR)")
    for first, end in pairwise(_DIGITS * number // (DISTANCE + 1) for number in range(DISTANCE + 2)):
        connection.execute(_BANDED, {"first": first + 1, "digits": end - first})
        connection.execute(_POPULAR, {"most": MOST})
        if passed_over := len(connection.sql("FROM popular").fetchall()):
            log.warning("near-duplicates: %d parts of fingerprints are those of over %d images and were not compared", passed_over, MOST)
        connection.execute(_COMPARED, {"distance": DISTANCE})
    connection.execute("CREATE OR REPLACE TEMP TABLE near_duplicates AS SELECT DISTINCT one, other FROM alike ORDER BY one, other")


def groups(connection: "duckdb.DuckDBPyConnection") -> list[list[Case]]:
    """The cases of the view samples that near-duplicates tie together, also over others; a case tied to none is in no group."""
    find(connection)
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
