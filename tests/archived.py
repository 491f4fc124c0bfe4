"""A download whose pixels, index and mapping lie in a ZIP archive, as the `zip` program makes it or as only Python's writer does."""

import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import raw_tree
from PIL import Image
from raw_tree import STEMS

needs_zip = pytest.mark.skipif(shutil.which("zip") is None, reason="needs the zip program")


def unpacked(root: Path) -> Path:
    """The download as it unpacks, with one image that no archive makes smaller."""
    raw_tree.write(root)
    noise = np.random.default_rng(0).integers(0, 256, (*raw_tree.size(STEMS[4]), 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "SAMed2Dv1" / "images" / f"{STEMS[4]}.png", compress_level=0)
    return root


def fill(folder: Path) -> Path:
    """Add files that nothing names behind each image, so that the images lie in several parts of 64 KB."""
    for number in range(63):
        name = f"{STEMS[number % len(STEMS)]}-{number}.bin"
        (folder / "SAMed2Dv1" / "images" / name).write_bytes(np.random.default_rng(number).bytes(4000))
    return folder


def packed(folder: Path, root: Path, *options: str) -> Path:
    """The same download with its pixels, index and mapping in an archive that the `zip` program makes; gives its folder."""
    shutil.copytree(folder, root, ignore=shutil.ignore_patterns("SAMed2Dv1"))
    names = "\n".join(file.relative_to(folder).as_posix() for file in sorted((folder / "SAMed2Dv1").rglob("*")))
    subprocess.run(["zip", "-q", *options, root / "SA-Med2D.zip", "-@"], cwd=folder, input=names, text=True, check=True)
    return root


def rezipped(folder: Path, root: Path, order: Callable[[Path], str] = str) -> Path:
    """The same with Python's own ZIP writer, whose archives can be changed so that no program would make them."""
    shutil.copytree(folder, root, ignore=shutil.ignore_patterns("SAMed2Dv1"))
    with zipfile.ZipFile(root / "SA-Med2D.zip", "w", zipfile.ZIP_DEFLATED) as made:
        for file in sorted((folder / "SAMed2Dv1").rglob("*"), key=order):
            made.write(file, file.relative_to(folder).as_posix())
    return root


def cut(root: Path, pieces: int) -> Path:
    """Cut the archive into pieces as the program `split` does: nothing in them says so."""
    whole = (root / "SA-Med2D.zip").read_bytes()
    size = len(whole) // pieces
    for number in range(1, pieces):
        (root / f"SA-Med2D.z{number:02d}").write_bytes(whole[size * (number - 1) : size * number])
    (root / "SA-Med2D.zip").write_bytes(whole[size * (pieces - 1) :])
    return root
