"""From raw data to registered models in one call: puts data and seed in place, lets DVC run what is out of date, says what came of it."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from unimed import outputs
from unimed.errors import InputError

RAW = Path("data/raw")
GENERATOR = Path(__file__).parent / "data"
CASES, SLICES = 640, 4
"""Made-up patients and slices of each that the demo trains and tests on."""


def place_phantoms(cases: int, slices: int, seed: int) -> bool:
    """Make data/raw a fresh set of phantoms; False when it is already the one asked for.

    Raises `InputError` when data/raw is neither phantoms nor a link: someone's own download is never removed.
    """
    stamp = outputs.beside(RAW, ".made")
    wanted = json.dumps({"cases": cases, "slices": slices, "seed": seed, "generator": _generator()})
    if RAW.is_dir() and not RAW.is_symlink() and stamp.exists() and stamp.read_text() == wanted:
        return False
    from unimed.data import phantom_files

    _make_room()
    RAW.parent.mkdir(parents=True, exist_ok=True)
    phantom_files.write(RAW, cases=cases, slices=slices, seed=seed)
    stamp.write_text(wanted)
    return True


def place_link(raw: Path) -> None:
    """Make data/raw a link to a download; raises `InputError` when there is none or when data/raw holds someone's own files."""
    if not (raw / "SAMed2Dv1").is_dir():
        raise InputError(f"{raw}: expected the folder SAMed2Dv1 of a download in it, found none")
    if RAW.exists() and raw.resolve() == RAW.resolve():
        return
    _make_room()
    RAW.parent.mkdir(parents=True, exist_ok=True)
    RAW.symlink_to(raw.resolve(), target_is_directory=True)


def _make_room() -> None:
    """Remove data/raw if it is a link or phantoms, and only then."""
    if RAW.exists() and not RAW.is_symlink() and not _is_generated():
        raise InputError(f"{RAW}: expected phantoms or a link, found other files; run `dvc repro` to use them, or move them away")
    outputs.remove(RAW)
    outputs.beside(RAW, ".made").unlink(missing_ok=True)


def _is_generated() -> bool:
    provenance = RAW / "provenance.json"
    return provenance.exists() and "phantoms" in json.loads(provenance.read_text()).get("generator", "")


def _generator() -> str:
    """A hash of the code that makes phantoms."""
    code = [file.read_bytes() for file in sorted(GENERATOR.glob("phantom*.py"))]
    return hashlib.sha256(b"".join(code)).hexdigest()


def set_seed(seed: int, file: Path = Path("params.yaml")) -> bool:
    """Write `seed` into its line of params.yaml, every other byte kept; False when it stood there already."""
    text = file.read_text()
    edited, count = re.subn(r"(?m)^seed:[ \t]*\S+", f"seed: {seed}", text)
    if count != 1:
        raise InputError(f"{file}: expected one line `seed: NUMBER`, found {count}")
    if edited != text:
        file.write_text(edited)
    return edited != text


def repro() -> int:
    """Run the stages that are out of date, their output passed through; the exit code of `dvc repro`."""
    here = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}"}
    return subprocess.run([here / "dvc", "repro"], env=environment, check=False).returncode
