"""A download in an S3 bucket: annotations fetched at once, pixels when they are packed, and only those that annotations name."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from unimed.data import paths
from unimed.data.raw import ANNOTATIONS, INDEX, MAPPING, PIXELS, PROVENANCE
from unimed.errors import InputError
from unimed.objects import Objects
from unimed.s3_client import THREADS


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


@lru_cache(maxsize=1)
def _connected(url: str, place: str) -> Objects:
    """The connection that this process keeps to a place."""
    return Objects(url)


def fetched(url: str, root: Path) -> Bucket:
    """The pixels at an address, once the annotations beside them have been copied to `root`.

    Raises InputError when S3 does not give them.
    """
    objects = Objects(url)
    for name in (INDEX, MAPPING, *_annotations(objects)):
        target = paths.inside(root, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            there = objects.copy(name, stream)
        if not there:
            raise InputError(f"{objects.url(name)}: expected a file of the download, found none")
    return Bucket(url, objects.place)


def _annotations(objects: Objects) -> Iterator[str]:
    """Names of the files with annotations, and of the one about the download, that are there."""
    for annotations in ANNOTATIONS:
        for name in objects.names(f"{annotations.folder}/"):
            if name.count("/") == annotations.pattern.count("/") and fnmatch(name, annotations.pattern):
                yield name
    yield from (name for name in objects.names(PROVENANCE) if name == PROVENANCE)
