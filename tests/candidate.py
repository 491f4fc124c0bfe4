"""A candidate for release as the stages leave it, small enough for every test to spoil its own copy: data, models and an evaluation."""

import json
import shutil
from pathlib import Path

import answered
import places
import raw_tree
from answered import CLOSED, DICE, GATE, ROWS, SEG  # noqa: F401  for who takes a candidate

from unimed import hashes
from unimed.config import Ingest, Split
from unimed.data import contract, subset
from unimed.eval import ladder
from unimed.eval.ladder import Row
from unimed.model import artifacts
from unimed.release.gate import Candidate

LICENCES = {"SetA": "CC0-1.0", "SetB": "CC-BY-4.0"}
MODELS = ("foundation", "aligned", "vqa_expert", "grounding_expert", "router", "reasoner")


def make(root: Path) -> None:
    """Write data, models and evaluation under `root`."""
    settings = Ingest(split=Split(train=0.5, val=0, test=0.5), max_bad_fraction=1, max_pixels=10_000, shard_size_mb=1, licences=LICENCES)
    raw_tree.ingested(raw_tree.write(root / "raw"), root, settings)
    for task in subset.TASKS:
        contract.write(raw_tree.chosen(root, task), root / "shards", root / "valid" / task, raw_tree.BOUNDS)
    places.reasoner(places.stages(root / "models"))
    (root / "report").mkdir()
    trained(root)


def trained(root: Path) -> None:
    """Let the models under `root` be ones that were trained and evaluated on the data that lie there now."""
    resealed(root, *MODELS[1:], data=hashes.dvc_hashes({task: root / "valid" / task for task in subset.TASKS}))
    evaluated(root)


def evaluated(root: Path, *rows: Row) -> None:
    """Write an evaluation of the models and data that lie under `root` now."""
    found = of(root)
    answered.write(root / "report", answered.predictions())
    ladder.write(root / "report" / "ladder.json", rows or ROWS)
    models = {name: artifacts.sha256(folder / artifacts.MANIFEST) for name, folder in found.models.items()}
    data = {task: hashes.dvc_hash(folder) for task, folder in found.data.items()}
    (root / "report" / "scored.json").write_text(json.dumps({"models": models, "data": data}))


def of(root: Path) -> Candidate:
    """The candidate under `root`."""
    data = {task: root / "valid" / task for task in subset.TASKS}
    return Candidate(data, {name: root / "models" / name for name in MODELS}, root / "report")


def copied(made: Path, root: Path) -> Path:
    """A copy to spoil; gives its folder."""
    for name in ("valid", "models", "report"):
        shutil.copytree(made / name, root / name)
    return root


def resealed(root: Path, *names: str, **facts: object) -> None:
    """Seal models anew after a change, each with its parents as they are now and with these facts: what one would do to hide it."""
    for name in names:
        folder = root / "models" / name
        manifest = json.loads((folder / artifacts.MANIFEST).read_text())
        parents = {parent: folder.parent / Path(record["path"]).name for parent, record in manifest.pop("parents").items()}
        del manifest["files"]
        artifacts.seal(folder, parents, **{**manifest, **facts})


def flags(root: Path) -> list[str]:
    """The models of the candidate as a command takes them."""
    return [word for name, folder in of(root).models.items() for word in (f"--{name.replace('_', '-')}", str(folder))]
