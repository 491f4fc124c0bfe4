"""Small releases, registered as `unimed release` does: parts of one file each, and scores as a test asks for."""

import json
from pathlib import Path

import answered
from answered import CLOSED, DICE, GATE, ROWS
from mlflow import MlflowClient

from unimed.model import artifacts
from unimed.release import register, scores
from unimed.release.manifest import MANIFEST
from unimed.release.parts import BASE, REGISTERED
from unimed.settings import Tracking

BOUNDS = GATE.model_copy(update={"margins": {CLOSED: 0.05, DICE: 0.05}})


def write(folder: Path, name: str, **how: float) -> tuple[Path, dict[str, Path]]:
    """Write a release with these scores; returns its release.json and the folders of its parts. Another name is another reasoner."""
    parts = {}
    for part in REGISTERED:
        parts[part] = folder / name / "parts" / part
        parts[part].mkdir(parents=True)
        (parts[part] / "note.txt").write_text(f"{part} {name if part == 'reasoner' else ''}")
        artifacts.seal(parts[part], {})
    report, release = folder / name / "report", folder / name / "release"
    release.mkdir()
    report.mkdir()
    answered.predictions(**how).to_parquet(report / scores.PREDICTIONS)
    scores.write(scores.table(report), release)
    sealed = {part: artifacts.sha256(place / artifacts.MANIFEST) for part, place in parts.items()}
    registered = {part: {"manifest_sha256": digest, "model": REGISTERED[part]} for part, digest in sealed.items()}
    manifest = {
        "name": "unimed-medvlm",
        "git_revision": "",
        "base": {},
        "licences": {"vqa": {"CC0-1.0": 1}},
        "parts": {BASE: {"manifest_sha256": "0" * 64}, **registered},
        "data": {"vqa": f"{how.get('seed', 0)}.dir"},
        "gate": {"sha256": name, "bounds": BOUNDS.model_dump(mode="json")},
        "evaluation": {"dvc": f"{how.get('seed', 0)}.dir", "rows": [vars(row) for row in ROWS]},
        "files": {scores.SCORES: artifacts.sha256(release / scores.SCORES)},
    }
    (release / MANIFEST).write_text(json.dumps(manifest))
    return release / MANIFEST, parts


def add(folder: Path, uri: str, name: str, **how: float) -> str:
    """Register a release with these scores; returns its version."""
    manifest, parts = write(folder, name, **how)
    return register.register(manifest, parts, "", Tracking(uri=uri))["version"]


def aliases(uri: str) -> dict[str, str]:
    """Which version each alias points at, the challenger's aside."""
    found = MlflowClient(uri, uri).get_registered_model("unimed-medvlm").aliases
    return {alias: str(version) for alias, version in found.items() if alias != "challenger"}
