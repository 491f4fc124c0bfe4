"""A project whose candidate was released, as `dvc repro`, the gate and the release leave it: data, models, reports and dvc.lock."""

import shutil
from pathlib import Path

import candidate
import yaml
from candidate import GATE

from unimed import hashes
from unimed.data import subset
from unimed.release import gate, manifest, papers
from unimed.release.gate import Candidate

LOCK = "accelerate==1.15.0\n    # via\n    #   unimed (pyproject.toml)\nnumpy[extra]==2.4.0\nsome_Package==1.0\nunimed==0.1.0\n"


def make(root: Path) -> None:
    """Write the project under `root`; the release is unsigned."""
    candidate.make(root / "data")
    (root / "reports").mkdir()
    (root / "data/models").rename(root / "models")
    (root / "data/report").rename(root / "reports/evaluation")
    (root / "requirements.lock").write_text(LOCK)
    assert gate.write(root / "reports/gate", of(root), GATE)["passed"]
    lock(root)
    release(root)


def of(root: Path) -> Candidate:
    """The candidate in the project."""
    data = {task: root / "data/valid" / task for task in subset.TASKS}
    return Candidate(data, {name: root / "models" / name for name in candidate.MODELS}, root / "reports/evaluation")


def release(root: Path, revision: str = "abc", folder: str = "reports/release") -> Path:
    """Write a release of the candidate as components/release.py does, and return its folder."""
    found = of(root)
    manifest.write(root / folder, root / "reports/gate", found.models, revision)
    papers.write(root / folder, root / "reports/gate", found.data, root / "requirements.lock")
    return root / folder


def lock(root: Path) -> None:
    """Write dvc.lock for the folders that lie there now."""

    def stage(outs: list[str], deps: list[str], **params: object) -> dict[str, object]:
        outs, deps = ([{"path": path, "md5": hashes.dvc_hash(root / path)} for path in paths] for paths in (outs, deps))
        return {"cmd": "python -m components.x", "deps": deps, "params": {"params.yaml": params}, "outs": outs}

    stages = {"ingest": stage(["data/shards", "data/tables"], ["data/raw"], seed=0)}
    for task in subset.TASKS:
        stages[f"subset_{task}"] = stage([f"data/subsets/{task}"], ["data/tables"])
        stages[f"validate_{task}"] = stage([f"data/valid/{task}"], [f"data/subsets/{task}", "data/shards"])
    stages["align"] = stage(["models/aligned"], ["data/valid/alignment"], align={"max_steps": 600, "batch_size": 16})
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def copied(project: Path, root: Path) -> Path:
    """A copy to spoil; gives its folder."""
    shutil.copytree(project, root, dirs_exist_ok=True)
    return root


def flip(file: Path, place: int = -1) -> None:
    """Change one bit of a byte in a file; it is written anew, so that a copy by link stays as it was."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
