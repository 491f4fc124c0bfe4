"""Finished shards with their rows, so that an ingest that was killed goes on after them and ends in the same bytes.

Each is sealed by a file that is written last: how many images went into it, a hash of all work up to its end, and the hashes of its
files. Shards of other work, and those whose files are not as they were, are packed again.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unimed import outputs
from unimed.data import shards, tables
from unimed.data.pack import Job, Packed
from unimed.data.shards import Place
from unimed.data.tables import CONVERSATIONS, MASKS, QUARANTINE, SAMPLES

DECIDED_LATER = ("split", "licence")
"""Columns of samples that only the whole collection decides."""

ROWS = {
    "samples": pa.schema([field for field in SAMPLES if field.name not in DECIDED_LATER]),
    "masks": MASKS,
    "conversations": CONVERSATIONS,
    "faults": QUARANTINE,
}
_TOGETHER = 256
"""Images whose rows are written at once."""

_SEAL = "seal.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """Shards and rows in `folder`, of work that begins with the hash `origin`: of all that decides what jobs come to."""

    folder: Path
    origin: str

    @property
    def shards(self) -> list[Path]:
        """The finished shards, in order."""
        return sorted((self.folder / "shards").glob("*.tar"))

    def rows(self, name: str) -> Path:
        """The files with rows of a table, as one pattern."""
        return self.folder / "rows" / "*" / f"{name}.parquet"

    def resumed(self, jobs: Iterator[Job]) -> tuple[int, int, str]:
        """How many shards are finished, the jobs that went into them, and the hash of these; what lies beyond them is removed."""
        work, done, number = self.origin, 0, 0
        for number in count():
            seal = self._sealed(number)
            reached = work
            for job in islice(jobs, seal["jobs"] if seal else 0):
                reached = _with(reached, job_hash(job))
            if seal is None or reached != seal["work"] or not self._is_whole(number, seal):
                break
            work, done = reached, done + seal["jobs"]
        for place in (*(self.folder / "rows").glob("*"), *self.shards):
            if int(place.stem.rpartition("-")[2]) >= number:
                outputs.remove(place)
        if number:
            log.info("ingest: goes on after %d shards with %d images", number, done)
        return number, done, work

    def fill(self, packed: Iterable[tuple[Packed, str]], first: int, work: str, shard_bytes: int) -> None:
        """Write shards from number `first` on, with their rows; each packed image comes with the hash of its job."""
        written = shards.write(self.folder / "shards", (_Member(*pair) for pair in packed), shard_bytes, first)
        number = first
        for name, members in groupby(written, key=lambda pair: pair[1].shard):
            jobs, work = self._write_rows(number, ((member.packed, place, member.job) for member, place in members), work)
            self._seal(number, {"jobs": jobs, "work": work}, self.folder / "shards" / name)
            number += 1
        if not number:
            self._write_rows(number, iter(()), work)

    def _write_rows(self, number: int, members: Iterator[tuple[Packed, Place, str]], work: str) -> tuple[int, str]:
        """Write the rows of a shard; the number of its images, and the hash of all work up to its end."""
        folder = self._place(number)
        outputs.remove(folder)
        folder.mkdir(parents=True)
        jobs = 0
        with ExitStack() as stack:
            writers = {kind: stack.enter_context(pq.ParquetWriter(_file(folder, kind), schema)) for kind, schema in ROWS.items()}
            while together := list(islice(members, _TOGETHER)):
                for kind, rows in _by_table(together).items():
                    writers[kind].write_table(tables.rows(rows, ROWS[kind]))
                for *_, job in together:
                    work, jobs = _with(work, job), jobs + 1
        return jobs, work

    def _seal(self, number: int, told: dict[str, Any], shard: Path) -> None:
        """Write down what a shard holds, once all of it is on the disk."""
        folder = self._place(number)
        files = [shard, *(_file(folder, kind) for kind in ROWS)]
        for file in files:
            outputs.flush(file)
        told["files"] = {file.relative_to(self.folder).as_posix(): digest(file) for file in files}
        partial = outputs.beside(folder / _SEAL, ".partial")
        tables.write_json(partial, told)
        outputs.place(partial, folder / _SEAL)

    def _place(self, number: int) -> Path:
        return self.folder / "rows" / f"{number:06d}"

    def _sealed(self, number: int) -> dict[str, Any] | None:
        try:
            return json.loads((self._place(number) / _SEAL).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _is_whole(self, number: int, seal: dict[str, Any]) -> bool:
        places = {self.folder / name: written for name, written in seal["files"].items()}
        wrong = [place.name for place, written in places.items() if not place.is_file() or digest(place) != written]
        if wrong:
            log.warning("ingest: shard %d is packed again: expected %s as it was written, found it changed or gone", number, wrong[0])
        return not wrong


@dataclass(frozen=True, slots=True)
class _Member:
    """An image as a shard takes it."""

    packed: Packed
    job: str

    @property
    def sample_id(self) -> str:
        """The image's stem."""
        return self.packed.sample_id

    @property
    def content(self) -> bytes:
        """Its bytes; none for one that cannot be used."""
        return self.packed.content


def job_hash(job: Job) -> str:
    """A hash of all that a job says."""
    return hashlib.sha256(repr(job).encode()).hexdigest()


def _with(work: str, job: str) -> str:
    return hashlib.sha256(f"{work} {job}".encode()).hexdigest()


def _by_table(together: Iterable[tuple[Packed, Place, str]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ROWS}
    for packed, place, _ in together:
        found["samples"] += [{**row, "shard": place.shard, "offset": place.offset, "size": place.size} for row in packed.samples]
        found["masks"] += packed.masks
        found["conversations"] += packed.conversations
        found["faults"] += map(asdict, packed.faults)
    return found


def _file(folder: Path, kind: str) -> Path:
    return folder / f"{kind}.parquet"


def digest(file: Path) -> str:
    """The sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
