"""Whether a release is what it says: every file against its hash, every part that is here, the signature against a public key.

Needs no network: what it compares lies in the folder of the release or beside it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unimed.errors import InputError
from unimed.model import artifacts
from unimed.release import signing
from unimed.release.manifest import MANIFEST, SIGNATURE, UNNAMED, read
from unimed.release.parts import BASE, in_order


def verify(folder: Path, models: Path, key: Path | None = None, digest: str = "") -> Iterator[str]:
    """A line for each thing as soon as it was found to match. Raises InputError at the first that does not.

    Parts are looked for in `folder` itself, where a fetched release holds them, and in `models`. Without a key a signature is not checked.
    `digest` is the hash of the manifest that a registry noted; empty when none did.
    """
    release, found = read(folder), artifacts.sha256(folder / MANIFEST)
    if digest and found != digest:
        raise InputError(f"{folder / MANIFEST}: expected sha256 {digest}, as the registry notes it, found {found}")
    yield f"{MANIFEST}: {found}"
    yield from _files(folder, release)
    yield from _signature(folder, key)
    for name, record in in_order(release["parts"]):
        yield _part(name, record, [folder / name, models / name])
    yield _base(release, [folder / BASE, models / BASE])


def _files(folder: Path, release: dict[str, Any]) -> Iterator[str]:
    for name, expected in sorted(release["files"].items()):
        path = folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise InputError(f"{folder / MANIFEST}: expected the file {name} beside it, found none")
        if (found := artifacts.sha256(path)) != expected:
            raise InputError(f"{path}: expected sha256 {expected}, found {found}")
        yield f"{name}: {found}"
    known = {*UNNAMED, *release["files"], *release["parts"]}
    if unknown := sorted(path.name for path in folder.iterdir() if path.name not in known):
        raise InputError(f"{folder / MANIFEST}: expected to name every file beside it, found nothing about {unknown[0]}")


def _signature(folder: Path, key: Path | None) -> Iterator[str]:
    if key:
        signing.check(folder, key)
        yield f"{SIGNATURE}: made with the key of {key}"
    elif (folder / SIGNATURE).is_file():
        yield f"{SIGNATURE}: not checked; give the public key with --key"
    else:
        yield f"{SIGNATURE}: not here, this release is unsigned"


def _part(name: str, record: Mapping[str, str], places: list[Path]) -> str:
    """Raises InputError when a folder of the part is here and is another model, or a broken one."""
    here = [place for place in places if (place / artifacts.MANIFEST).exists()]
    for place in here:
        if (found := artifacts.sha256(place / artifacts.MANIFEST)) != (expected := record["manifest_sha256"]):
            raise InputError(f"{place / artifacts.MANIFEST}: expected sha256 {expected}, found {found}")
        artifacts.verify(place)
    return f"{name}: every file of {', '.join(map(str, here))}" if here else f"{name}: not here"


def _base(release: dict[str, Any], places: list[Path]) -> str:
    pinned, noted = release["base"].get("manifest_sha256"), release["parts"].get(BASE, {}).get("manifest_sha256")
    if pinned != noted:
        raise InputError(f"{MANIFEST}: expected one {BASE}, found {noted} among the parts and {pinned} as base")
    files = release["base"].get("files", {})
    for place in places:
        if (place / artifacts.MANIFEST).exists() and artifacts.verify(place)["files"] != files:
            raise InputError(f"{MANIFEST}: expected the files of {place} as base, found others")
    return f"base: {len(files)} files of {BASE} by hash"
