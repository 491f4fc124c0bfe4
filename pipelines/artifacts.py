"""Between KFP artifacts and the plain folders that components read and write.

An artifact is the folder itself, or a file: the folder's DVC listing, whose bytes lie in the store.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pipelines.stages import Stage
from unimed import hashes
from unimed.errors import InputError
from unimed.store import Store

SHOWN = {".html": "HTML", ".json": "Metrics"}
"""The KFP type of a file that the UI shows, by its ending."""

RUN = "KFP_RUN_ID"
"""Where a pod finds its run. Kubeflow leaves its own placeholder for it as it is in the command of a container."""

PASSED, REJECTED, OUTCOME = "passed", "rejected", "outcome"
"""The words of a gate, and the output parameter that carries them."""

KINDS = {"data": "Dataset", "models": "Model"}
"""The KFP type of an artifact by the top folder of its path; anything else is an Artifact."""


def kind(path: str) -> str:
    """The KFP type of what lies at a path of dvc.yaml, or of a file that is shown."""
    return SHOWN.get(Path(path).suffix) or KINDS.get(path.split("/")[0], "Artifact")


def take(artifact: Path, place: Path, store: Store | None) -> str:
    """Put the folder of an artifact at `place`; returns its hash as DVC writes it."""
    if artifact.is_dir():
        shutil.copytree(artifact, place)
        return hashes.dvc_hash(place)
    digest = referred(artifact)
    if store is None:
        raise InputError(f"{artifact}: expected a folder, found the listing {digest}, and no store to fetch it from; pass --store")
    store.pull(digest, place)
    return digest


def referred(artifact: Path) -> str:
    """The hash of the folder whose listing an artifact is; raises `InputError` when it is no listing."""
    text = artifact.read_bytes() if artifact.is_file() else b""
    try:
        return hashes.listing_hash(hashes.read_listing(text))
    except ValueError:
        found = "another file" if text else "nothing"
        raise InputError(f"{artifact}: expected a folder or the DVC listing of one, found {found}") from None


def digest(artifact: Path) -> str:
    """The hash as DVC writes it of the folder that an artifact is or refers to."""
    return hashes.dvc_hash(artifact) if artifact.is_dir() else referred(artifact)


def hand_on(folder: Path, artifact: Path, digest: str, store: Store | None, most_bytes: int) -> None:
    """Make a folder the artifact: itself, or its listing when it is larger than `most_bytes` and the store has it."""
    if store and hashes.size(folder) > most_bytes:
        refer(digest, artifact, store)
    else:
        artifact.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, artifact, dirs_exist_ok=True)


def refer(digest: str, artifact: Path, store: Store) -> None:
    """Make the listing of a folder in the store the artifact."""
    artifact.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_bytes(hashes.listing_text(store.listing(digest)))


def metadata(folder: Path, digest: str, parents: dict[str, str]) -> dict[str, Any]:
    """What the UI shows of an artifact: hash, bytes, files, rows as its manifest counts them, hashes of what it was made from."""
    facts: dict[str, Any] = {"bytes": float(hashes.size(folder)), "files": float(len(hashes.files(folder)))}
    manifest = folder / "manifest.json"
    counts = json.loads(manifest.read_text()).get("counts", {}) if manifest.exists() else {}
    facts |= {name: float(count) for name, count in counts.items() if isinstance(count, int)}
    return identity(digest, parents) | facts


def identity(digest: str, parents: dict[str, str]) -> dict[str, Any]:
    """The part of an artifact's metadata that says what it is and what it was made from, by hash."""
    return {"md5": digest, "parents": json.dumps(parents)}


def port(file: str) -> str:
    """The name of the output under which a file is shown."""
    return file.replace(".", "_")


def ladder(file: Path) -> dict[str, float]:
    """The scores of a ladder.json as KFP metrics, by stage and metric; those without a value are left out."""
    rows = json.loads(file.read_text())
    return {f"{row['stage']} {row['metric']}": row["value"] for row in rows if row["value"] is not None}


def show(stage: Stage, folder: Path, file: str, artifact: Path) -> dict[str, Any]:
    """Put a file of the stage's outputs where the UI shows it; returns its metadata: of a ladder, the scores."""
    source = next(place for path in stage.outputs.values() if (place := folder / path / file).is_file())
    artifact.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, artifact)
    return ladder(source) if kind(file) == "Metrics" else {}


def decide(stage: Stage, folder: Path, outcome: Path | None) -> dict[str, str]:
    """The output parameter of a stage with a verdict, written to `outcome` too; empty for the others."""
    if outcome is None:
        return {}
    verdict = json.loads(next(folder / path / "verdict.json" for path in stage.outputs.values()).read_text())
    word = PASSED if verdict["passed"] else REJECTED
    outcome.parent.mkdir(parents=True, exist_ok=True)
    outcome.write_text(word)
    return {OUTCOME: word}


def run_id(executor_input: dict[str, Any]) -> str:
    """The pipeline run that a pod belongs to: its label on a cluster, and the folder of its artifacts where nothing sets that."""
    if known := os.environ.get(RUN):
        return known
    uri = next(iter(executor_input["outputs"]["artifacts"].values()))["artifacts"][0]["uri"]
    return Path(uri).parent.parent.name


def report(executor_input: dict[str, Any], about: dict[str, dict[str, Any]], parameters: dict[str, str]) -> None:
    """Tell KFP the metadata of each output, where its executor input says: the real launcher and the local one both look there."""
    told = executor_input["outputs"]
    artifacts = {
        port: {"artifacts": [{**artifact, "metadata": about.get(port, {})} for artifact in entry["artifacts"]]}
        for port, entry in told.get("artifacts", {}).items()
    }
    file = Path(told["outputFile"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"artifacts": artifacts, "parameterValues": parameters}))
