"""Who saw a patient: the data sets cut from the download, and the models and releases that were trained or judged on them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimed import hashes, mlflow_server
from unimed.data import sql
from unimed.data.subset import TASKS
from unimed.data.tables import SPLITS
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.release.closure import DATA, MODELS, download, opened
from unimed.release.manifest import MANIFEST
from unimed.release.parts import PARENTS, REGISTERED, RELEASE
from unimed.release.tree import Node, missing
from unimed.settings import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

SAW = {"train": "trained on it for", "val": "validated on it for", "test": "judged on it for"}
"""What was done with a case for a task, by the split that the case is in."""

_SPLITS = 'SELECT split, count(*) FROM samples WHERE dataset = $dataset AND "case" = $name GROUP BY 1 ORDER BY 1'


@dataclass(frozen=True)
class Case:
    """A patient or study, unique within its data set."""

    dataset: str
    name: str

    @classmethod
    def parse(cls, text: str) -> "Case":
        """From DATASET/CASE. Raises InputError for another form."""
        dataset, slash, name = text.partition("/")
        if not (dataset and slash and name):
            raise InputError(f"{text}: expected DATASET/CASE as the tables name them, found another form")
        return cls(dataset, name)

    def splits(self, folder: Path) -> dict[str, int]:
        """How many images of the case the tables in a folder hold, by split."""
        with sql.opened(samples=folder / "samples.parquet") as connection:
            return dict(connection.execute(_SPLITS, {"dataset": self.dataset, "name": self.name}).fetchall())


def trace(text: str, settings: Tracking, root: Path) -> Node:
    """Tables under data/ that hold a case, by split, then the models here and in the registry that were made of those.

    A registry that does not answer shows as not here. Raises InputError when no table under data/ names the case.
    """
    case = Case.parse(text)
    found = {place: case.splits(root / place) for place in places(root)}
    if not any(found.values()):
        raise InputError(f"{text}: expected a case of the tables in {DATA}, found none; `dvc pull` fetches tables that are not here")
    seen = {place: splits for place, splits in found.items() if splits}
    valid = {task: DATA / "valid" / task for task in TASKS}
    saw = {hashes.dvc_hash(root / place): (task, seen[place]) for task, place in valid.items() if place in seen}
    where = tuple(
        Node(place.as_posix(), {split: str(splits[split]) for split in SPLITS if split in splits}) for place, splits in seen.items()
    )
    lacks = tuple(missing(place.as_posix(), {}) for place in (DATA / "tables", *valid.values()) if place not in found)
    return Node(f"case {text}", children=(Node("data", children=(*where, *lacks)), _local(saw, root), _registered(saw, settings)))


def places(root: Path) -> list[Path]:
    """Folders with tables under data/, as paths from the root."""
    folders = [DATA / "tables", *(DATA / kind / task for kind in ("subsets", "valid") for task in TASKS)]
    return [folder for folder in folders if (root / folder / "samples.parquet").is_file()]


Saw = Mapping[str, tuple[str, Mapping[str, int]]]
"""By hash of validated data that hold the case: the task, and the case's images by split."""


def _what(data: Mapping[str, str], saw: Saw) -> dict[str, str]:
    """What something that was made of data with these hashes did with the case: the tasks, by what was done."""
    known = [saw[digest] for _, digest in sorted(data.items()) if digest in saw]
    found = {SAW[split]: ", ".join(task for task, splits in known if split in splits) for split in SPLITS}
    return {done: tasks for done, tasks in found.items() if tasks}


def _local(saw: Saw, root: Path) -> Node:
    manifests = {name: _read(root / MODELS / name / artifacts.MANIFEST) for name in PARENTS}
    made = {name: content for name, content in manifests.items() if content}
    own = {name: _what(content.get("data") or {}, saw) for name, content in made.items()}
    nodes = [Node(f"{MODELS}/{name}", told) for name in made if (told := own[name] | _inherited(name, made, own))]
    return Node("models here", children=tuple(nodes)) if made else missing("models here", {})


def _inherited(name: str, made: Mapping[str, Any], own: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What the models that this one starts from learned of the case, where it did not learn the same itself."""
    parents = [PARENTS[name].get(key, key) for key in made[name].get("parents", {})]
    trained = SAW["train"]
    learned = {parent: own.get(parent, {}).get(trained, "") for parent in parents}
    return {f"starts from {parent}, {trained}": told for parent, told in learned.items() if told not in ("", own[name].get(trained))}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_bytes())
    return content if isinstance(content, dict) else {}


def _registered(saw: Saw, settings: Tracking) -> Node:
    if reason := mlflow_server.absence(settings) or mlflow_server.refusal(mlflow_server.address(settings)):
        return missing("registry", {"because": reason})
    with opened(settings, "tell which versions saw a case") as (client, cache):
        return Node("registry", children=tuple(_versions(client, cache, saw)))


def _versions(client: "MlflowClient", cache: Path, saw: Saw) -> "Iterator[Node]":
    """Each registered version that saw the case, by the data hashes in its manifest."""
    for model in (*REGISTERED.values(), RELEASE):
        versions = sorted(client.search_model_versions(f"name = '{model}'"), key=lambda version: int(version.version))
        for version in versions:
            name, file = f"{model} version {version.version}", MANIFEST if model == RELEASE else artifacts.MANIFEST
            folder = download(client, version, cache / model / str(version.version), file)
            if folder is None:
                yield missing(name, {})
            elif told := _what(_read(folder / file).get("data") or {}, saw):
                yield Node(name, told)
