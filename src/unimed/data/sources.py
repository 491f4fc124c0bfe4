"""Where a download lies: a folder as it unpacks, a folder with its archive in parts, or a text file with an `s3://` address."""

from dataclasses import dataclass
from pathlib import Path

from unimed.data import archive
from unimed.data.archive import Archive
from unimed.data.pixels import Folder, Pixels
from unimed.data.raw import INDEX, MAPPING, PIXELS
from unimed.errors import InputError


@dataclass(frozen=True)
class Download:
    """The files of a download that are read from start to end, and what gives its pixels; `root` holds the annotations."""

    root: Path
    index: Path
    mapping: Path
    pixels: Pixels


def opened(source: Path, scratch: Path) -> Download:
    """The download at `source`; what must be fetched or noted before it can be read goes into the folder `scratch`.

    Raises InputError when there is none or files of the layout are missing.
    """
    if source.is_file():
        return _bucket(source, scratch / "download")
    if not source.is_dir():
        raise InputError(f"{source}: expected a folder, found none")
    folder, archives = source / PIXELS, sorted(source.glob("*.zip"))
    if not archives or (folder / "images").exists():
        return _folder(source)
    if len(archives) > 1:
        raise InputError(f"{source}: expected one archive, found {', '.join(file.name for file in archives)}")
    found = archive.opened(archives[0], scratch / "directory", PIXELS)
    index, mapping = (_beside(source, found, name, scratch) for name in (INDEX, MAPPING))
    return Download(source, index, mapping, found)


def _folder(source: Path) -> Download:
    for folder in (source / PIXELS / "images", source / PIXELS / "masks"):
        if not folder.is_dir():
            raise InputError(f"{folder}: expected a folder, found {'a file' if folder.exists() else 'none'}")
    return Download(source, source / INDEX, source / MAPPING, Folder(source / PIXELS))


def _beside(source: Path, found: Archive, name: str, scratch: Path) -> Path:
    """A file of the layout: beside the archive where it is there, else copied out of it."""
    entry = None if (source / name).exists() else found.entry(name)
    if entry is None:
        return source / name
    target = scratch / Path(name).name
    with target.open("wb") as stream:
        stream.writelines(found.chunks(name, entry))
    return target


def _bucket(source: Path, root: Path) -> Download:
    from unimed.data import bucket  # boto3 is slow to import and of no use to other sources

    try:
        url = source.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: expected a folder, or a text file with s3://BUCKET/PREFIX, found other bytes") from error
    pixels = bucket.fetched(url, root)
    return Download(root, root / INDEX, root / MAPPING, pixels)
