"""The release manifest: exactly which parts, data and scores a release is. It says nothing that changes when a release is tried again.

Files beside it, such as the cards, are named under `files` with their hashes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unimed import NOTICE, hashes
from unimed.data.streamed import load
from unimed.data.tables import write_json
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.release.gate import VERDICT
from unimed.release.parts import BASE, REGISTERED, RELEASE

MANIFEST, SIGNATURE, REGISTERED_AS = "release.json", "signature.json", "registered.json"
"""The manifest, the signature over it and all files it names, and a note of the numbers that the registry gave: neither can stand in it."""

UNNAMED = {MANIFEST, SIGNATURE, REGISTERED_AS, "registered_model_meta", "__pycache__"}
"""What may lie in a release without being named: those three, and what MLflow's own loader leaves there, which nothing of ours reads."""

_SHOWN = 3
"""Reasons of a rejection that are repeated."""


def write(folder: Path, gate: Path, parts: Mapping[str, Path], revision: str) -> Path:
    """Write release.json for parts that a gate has let through, and return its path; the same input gives the same bytes.

    Raises InputError when the gate rejected them, judged others, or a file has changed since.
    """
    verdict = _passed(gate / VERDICT)
    manifest = {
        "name": RELEASE,
        "notice": NOTICE,
        "git_revision": revision,
        "base": _base(parts[BASE]),
        "parts": {name: _part(name, place, verdict["models"].get(name), gate) for name, place in parts.items()},
        "data": verdict["data"],
        "licences": verdict["licences"],
        "evaluation": {"dvc": verdict["evaluation"], "rows": _gated(verdict)},
        "gate": {"sha256": artifacts.sha256(gate / VERDICT), "bounds": verdict["bounds"]},
        "files": {},
    }
    write_json(folder / MANIFEST, manifest)
    return folder / MANIFEST


def read(folder: Path) -> dict[str, Any]:
    """The release.json of a folder. Raises InputError when there is none or it is built otherwise."""
    return checked(load(folder / MANIFEST), str(folder / MANIFEST))


def checked(content: Any, path: str) -> dict[str, Any]:
    """The content of the release.json at `path`, if it is one. Raises InputError otherwise."""
    sections = ("base", "data", "evaluation", "files", "gate", "licences", "parts")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in sections):
        raise InputError(f"{path}: expected the manifest of a release with {', '.join(sections)}, found other JSON")
    if not all(isinstance(content.get(key), str) for key in ("name", "git_revision")):
        raise InputError(f"{path}: expected a release with a name and a git_revision, found other JSON")
    if wrong := [name for name, part in content["parts"].items() if not isinstance(part, dict) or "manifest_sha256" not in part]:
        raise InputError(f"{path}: expected a manifest_sha256 of each part, found none of {wrong[0]}")
    return content


def name_files(folder: Path) -> None:
    """Name every file that lies beside release.json in it, with its hash; call it when all are written and before they are signed."""
    found = {path.name: artifacts.sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    write_json(folder / MANIFEST, read(folder) | {"files": found})


def _passed(path: Path) -> dict[str, Any]:
    """The verdict of a gate, if it is a pass."""
    verdict = load(path)
    if not isinstance(verdict, dict) or not {"passed", "reasons", "models", "data", "licences", "evaluation", "rows"} <= verdict.keys():
        raise InputError(f"{path}: expected the verdict of a gate, found other JSON")
    if verdict["passed"] is not True:
        reasons = "; ".join(map(str, verdict["reasons"][:_SHOWN]))
        raise InputError(f"{path}: expected a passed gate, found a rejection ({reasons}); mend that and run the gate again")
    return verdict


def _base(folder: Path) -> dict[str, Any]:
    """What is frozen and not copied, pinned by the hash of its manifest and of every file."""
    return {"manifest_sha256": artifacts.sha256(folder / artifacts.MANIFEST), "files": artifacts.verify(folder)["files"]}


def _part(name: str, folder: Path, judged: str | None, gate: Path) -> dict[str, str]:
    artifacts.verify(folder)
    if (found := artifacts.sha256(folder / artifacts.MANIFEST)) != judged:
        raise InputError(f"{folder}: expected the model that {gate} judged, manifest sha256 {judged}, found {found}; run the gate again")
    registered = {"model": REGISTERED[name]} if name in REGISTERED else {}
    return {"manifest_sha256": found, "dvc": hashes.dvc_hash(folder), **registered}


def _gated(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the ladder that the gate held against a bound."""
    names = {name for kind in ("floors", "ceilings", "gaps") for name in verdict["bounds"][kind]}
    return [row for row in verdict["rows"] if f"{row['stage']} / {row['metric']}" in names]
