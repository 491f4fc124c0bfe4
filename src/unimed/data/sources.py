"""Where a download lies: a folder as it unpacks, a folder with its archive in parts, or a text file with the `s3://` address of either."""

from dataclasses import dataclass
from pathlib import Path

from unimed.data import archive, zip_directory
from unimed.data.archive import Archive
from unimed.data.pixels import Folder, Pixels
from unimed.data.raw import INDEX, MAPPING, PIXELS
from unimed.data.zip_directory import File, Parts
from unimed.errors import InputError


@dataclass(frozen=True)
class Download:
    """The files of a download that are read from start to end, and what gives its pixels; `root` holds the annotations."""

    root: Path
    index: Path
    mapping: Path
    pixels: Pixels
    tags: tuple[str, ...] = ()
    """What tells the pixels from others that may take their place while an ingest is interrupted; none where the recipe key does."""


def opened(source: Path, scratch: Path) -> Download:
    """The download at `source`; what must be fetched or noted before it can be read goes into the folder `scratch`.

    Raises InputError when there is none or files of the layout are missing.
    """
    if source.is_file():
        return _bucket(source, scratch)
    if not source.is_dir():
        raise InputError(f"{source}: expected a folder, found none")
    names = [file.name for file in source.iterdir()]
    last = None if (source / PIXELS / "images").exists() else zip_directory.last_part(names, str(source))
    if last is None:
        return _folder(source)
    files = (File.at(source / name) for name in zip_directory.in_order(names, last))
    return _archive(source, Parts.of(files), scratch)


def _folder(source: Path) -> Download:
    for folder in (source / PIXELS / "images", source / PIXELS / "masks"):
        if not folder.is_dir():
            raise InputError(f"{folder}: expected a folder, found {'a file' if folder.exists() else 'none'}")
    return Download(source, source / INDEX, source / MAPPING, Folder(source / PIXELS))


def _archive(root: Path, parts: Parts, scratch: Path) -> Download:
    """A download whose annotations lie under `root`, and all else in the archive in these parts."""
    found = archive.opened(parts, scratch / "directory", PIXELS)
    index, mapping = (_beside(root, found, name, scratch) for name in (INDEX, MAPPING))
    return Download(root, index, mapping, found, tuple(part.tag for part in parts.files))


def _beside(source: Path, found: Archive, name: str, scratch: Path) -> Path:
    """A file of the layout: beside the archive where it is there, else copied out of it."""
    target = scratch / Path(name).name
    return source / name if (source / name).exists() or not found.copy(name, target) else target


def _bucket(source: Path, scratch: Path) -> Download:
    from unimed.data import bucket  # boto3 is slow to import and of no use to other sources

    try:
        url = source.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: expected a folder, or a text file with s3://BUCKET/PREFIX, found other bytes") from error
    root = scratch / "download"
    found = bucket.fetched(url, root)
    if isinstance(found, Parts):
        return _archive(root, found, scratch)
    return Download(root, root / INDEX, root / MAPPING, found)
