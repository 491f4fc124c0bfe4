"""A download in an S3 bucket, unpacked or as its archive: annotations fetched at once, pixels when they are packed and are named."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from unimed.data import paths, zip_directory
from unimed.data.raw import ANNOTATIONS, INDEX, MAPPING, PIXELS, PROVENANCE
from unimed.data.zip_directory import Parts
from unimed.errors import InputError
from unimed.objects import Objects
from unimed.s3_client import THREADS

_CONNECTING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Bucket:
    """Pixels that lie as objects under an `s3://` address at a service, fetched by a few threads."""

    url: str
    place: str

    def read(self, wanted: Sequence[str]) -> list[bytes | InputError]:
        """The bytes of each object, held against the md5 that S3 keeps; only that there is none is the fault of one file."""
        objects = _connected(self.url, self.place)
        with ThreadPoolExecutor(THREADS) as threads:
            return list(threads.map(lambda path: _content(objects, path), wanted))


def _content(objects: Objects, path: str) -> bytes | InputError:
    if {"", ".", ".."} & set(path.split("/")):
        return InputError(f"{path}: expected a path inside {PIXELS}, found one that leads outside")
    content = BytesIO()
    if not objects.copy(f"{PIXELS}/{path}", content):
        return InputError(f"{path}: expected a file, found none in the bucket")
    return content.getvalue()


@dataclass(frozen=True, slots=True)
class ObjectPart:
    """A part of an archive that is an object, as it was when the ingest began: `tag` is S3's for its bytes."""

    url: str
    place: str
    key: str
    size: int
    tag: str

    @property
    def name(self) -> str:
        """Its address."""
        return f"{self.url.rstrip('/')}/{self.key}"

    def read(self, offset: int, size: int) -> bytes:
        """Some of its bytes. Raises InputError when another object has taken its place, or S3 does not give them."""
        with _CONNECTING:
            objects = _connected(self.url, self.place)
        return objects.piece(self.key, self.tag, offset, size)


@lru_cache(maxsize=1)
def _connected(url: str, place: str) -> Objects:
    """The connection that this process keeps to a place."""
    return Objects(url)


def fetched(url: str, root: Path) -> Bucket | Parts:
    """The pixels at an address, or the archive that holds them, once the annotations beside them have been copied to `root`.

    Raises InputError when S3 does not give them.
    """
    objects = Objects(url)
    parts = _parts(objects, url)
    for name in (INDEX, MAPPING, *_annotations(objects)):
        target = paths.inside(root, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            there = objects.copy(name, stream)
        if there:
            continue
        if not parts or name not in (INDEX, MAPPING):
            raise InputError(f"{objects.url(name)}: expected a file of the download, found none")
        target.unlink()  # it is in the archive
    return parts or Bucket(url, objects.place)


def _parts(objects: Objects, url: str) -> Parts | None:
    """The parts of the archive; None when there is none, or its images lie beside it unpacked."""
    if next(objects.names(f"{PIXELS}/images/"), None):
        return None
    names = list(objects.names(""))
    last = zip_directory.last_part(names, url)
    if last is None:
        return None
    found = ((key, objects.version(key)) for key in zip_directory.in_order(names, last))
    return Parts.of((ObjectPart(url, objects.place, key, *version) for key, version in found if version), at_once=THREADS)


def _annotations(objects: Objects) -> Iterator[str]:
    """Names of the files with annotations, and of the one about the download, that are there."""
    for annotations in ANNOTATIONS:
        yield from (name for name in objects.names(f"{annotations.folder}/") if fnmatch(name, annotations.pattern))
    yield from (name for name in objects.names(PROVENANCE) if name == PROVENANCE)
