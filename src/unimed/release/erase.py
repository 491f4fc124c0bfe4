"""What was made of a case, so that it can be withdrawn: out of the next run by exclusions.csv, out of the past by people who know where."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from unimed.data import exclusions
from unimed.errors import InputError
from unimed.release import case as cases
from unimed.release.case import Case
from unimed.release.closure import DATA, Lock
from unimed.release.tree import Node, missing
from unimed.settings import Tracking

IMAGES = (DATA / "shards").as_posix()
"""Where images lie. What reads them reads those that its tables name, so that a case does not travel through them."""

NEXT = """next:
  commit {file}; remove the files of the case from data/raw, and from where it was downloaded to
  `dvc repro` makes data and models without it; release and promote what passes the gate
  registered versions named above stay until somebody deletes them
  `dvc gc --workspace --cloud` drops older data from cache and store, once no commit or tag that you keep needs them"""


def erase(names: Sequence[str], reason: str, settings: Tracking, root: Path, day: date) -> str:
    """Exclude cases named DATASET/CASE from the next run; gives, as text, what was made of each and what to do next.

    Raises InputError, and writes nothing, when a name has another form, or no table here holds the case.
    """
    trees = [derived(name, settings, root) for name in names]
    asked = [Case.parse(name) for name in names]
    new = exclusions.add(root / exclusions.FILE, [(case.dataset, case.name) for case in asked], reason, day)
    told = [f"{'/'.join(case)} is excluded from the next run" for case in new]
    known = [f"{case.dataset}/{case.name} was excluded before" for case in asked if (case.dataset, case.name) not in new]
    return "\n".join([*(tree.text() for tree in trees), "", *told, *known, "", NEXT.format(file=exclusions.FILE)])


def derived(name: str, settings: Tracking, root: Path) -> Node:
    """The tree of `unimed trace --case`, and all that dvc.yaml makes of what holds the case. Raises InputError for an unknown case."""
    tree = cases.trace(name, settings, root)
    stages, lock = _stages(root / "dvc.yaml"), Lock(root)
    case = Case.parse(name)
    holds = {place.as_posix(): bool(case.splits(root / place)) for place in cases.places(root)}
    made = _made(stages, holds)
    nodes = [_artifact(path, stage, lock, root) for stage, entry in stages.items() for path in entry["outs"] if path in made]
    return Node(tree.name, children=(*tree.children, Node("artifacts", children=tuple(nodes))))


def _stages(path: Path) -> dict[str, Any]:
    """Inputs and outputs of each stage. Raises InputError when there is no dvc.yaml."""
    if not path.is_file():
        raise InputError(f"{path}: expected the stages of a project, found none; call this in the folder that holds it")
    return yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]


def _made(stages: Mapping[str, Mapping[str, Any]], holds: Mapping[str, bool]) -> set[str]:
    """Outputs that hold the case or were made of what does; `holds` is known of tables that are here.

    Tables that are not here count when they were made of, or went into, tables that hold it.
    """
    found = {path for path, known in holds.items() if known}
    before = set()
    while found != before:
        before = set(found)
        for entry in stages.values():
            deps, outs = set(entry["deps"]) - {IMAGES}, set(entry["outs"])
            if deps & found or outs & found:
                found |= _unless_known(outs, holds)
            if any(path.startswith(f"{DATA}/") for path in outs & found):
                found |= _unless_known(deps & _all_outs(stages), holds)
    return found


def _unless_known(paths: Iterable[str], holds: Mapping[str, bool]) -> set[str]:
    return {path for path in paths if holds.get(path, True)}


def _all_outs(stages: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {path for entry in stages.values() for path in entry["outs"]}


def _artifact(path: str, stage: str, lock: Lock, root: Path) -> Node:
    """An output of a stage, with the hash of what the stage made last."""
    made = {out["path"]: out["md5"] for out in lock.stages.get(stage, {}).get("outs", [])}
    facts = {"made by": stage, **({"hash": made[path]} if path in made else {})}
    return Node(path, facts) if (root / path).exists() else missing(path, facts)
