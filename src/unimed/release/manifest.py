"""The release manifest: exactly which parts, data and scores a release is. It says nothing that changes when a release is tried again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unimed import NOTICE, hashes
from unimed.data.raw import load
from unimed.data.tables import write_json
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.release.gate import VERDICT
from unimed.release.parts import REGISTERED, RELEASE

MANIFEST = "release.json"

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
        "parts": {name: _part(name, place, verdict["models"].get(name), gate) for name, place in parts.items()},
        "data": verdict["data"],
        "licences": verdict["licences"],
        "evaluation": {"dvc": verdict["evaluation"], "rows": _gated(verdict)},
        "gate": {"sha256": artifacts.sha256(gate / VERDICT), "bounds": verdict["bounds"]},
    }
    write_json(folder / MANIFEST, manifest)
    return folder / MANIFEST


def _passed(path: Path) -> dict[str, Any]:
    """The verdict of a gate, if it is a pass."""
    verdict = load(path)
    if not isinstance(verdict, dict) or not {"passed", "reasons", "models", "data", "licences", "evaluation", "rows"} <= verdict.keys():
        raise InputError(f"{path}: expected the verdict of a gate, found other JSON")
    if verdict["passed"] is not True:
        reasons = "; ".join(map(str, verdict["reasons"][:_SHOWN]))
        raise InputError(f"{path}: expected a passed gate, found a rejection ({reasons}); mend that and run the gate again")
    return verdict


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
