"""What a run would do and why, from dvc.lock and the store's records alone: no data are touched, none need be there."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.plan import Plan
from pipelines.stages import CODE, Stage, param
from unimed import hashes
from unimed.errors import InputError
from unimed.params import flat
from unimed.store import Store

log = logging.getLogger("plan")
MADE, DUE = "up to date", "to run"


@dataclass(frozen=True)
class Verdict:
    """Of one stage: its key, whether the project has its outputs, why not, whether the store has them (None: not asked)."""

    stage: str
    key: str
    here: bool
    reasons: tuple[str, ...]
    stored: bool | None


def judge(plan: Plan, root: Path) -> list[Verdict]:
    """A verdict on each stage, in order; a store that does not answer is left out with a warning."""
    kept = stored(plan)
    lock = root / "dvc.lock"
    entries = (yaml.safe_load(lock.read_text()) or {}).get("stages", {}) if lock.exists() else {}
    verdicts: list[Verdict] = []
    changed: dict[str, str] = {}
    for stage in plan.stages:
        reasons = tuple(differences(stage, entries.get(stage.name), plan, changed, root))
        if reasons:
            changed |= dict.fromkeys(stage.outputs.values(), stage.name)
        verdicts.append(Verdict(stage.name, plan.keys[stage.name], not reasons, reasons, kept.get(stage.name)))
    return verdicts


def stored(plan: Plan) -> dict[str, bool]:
    """Whether the store has a record of each stage; empty without a store."""
    if not plan.store:
        return {}
    try:
        store = Store(plan.store)
        return {name: store.record(name, key) is not None for name, key in plan.keys.items()}
    except InputError as error:
        log.warning("%s", error)
        return {}


def differences(stage: Stage, entry: dict[str, Any] | None, plan: Plan, changed: dict[str, str], root: Path) -> list[str]:
    """Why what dvc.lock records of a stage is not what it would make now; empty when it is."""
    if entry is None:
        return ["never run here"]
    reasons = [] if entry["cmd"].split() == list(stage.command) else ["its command has changed"]
    reasons += _numbers(stage, entry, plan)
    recorded = {item["path"]: item["md5"] for item in entry.get("deps", [])}
    reasons += [f"{path} is made anew by {changed[path]}" for path in stage.inputs.values() if path in changed]
    for path in (*stage.code, *(path for path in stage.inputs.values() if path in plan.roots)):
        now = hashes.dvc_hash(root / path) if path.startswith(CODE) else plan.roots[path]
        if recorded.get(path) != now:
            reasons.append(f"{path} has changed")
    return reasons


def _numbers(stage: Stage, entry: dict[str, Any], plan: Plan) -> list[str]:
    then = flat(entry.get("params", {}).get("params.yaml", {}))
    now = flat({key: param(plan.params, key) for key in stage.params})
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    return [f"{key} was {then.get(key, 'absent')}, is {now.get(key, 'absent')}" for key in changed]


def table(verdicts: list[Verdict]) -> str:
    """The verdicts as aligned lines, reasons at the end of each."""
    lines = []
    for verdict in verdicts:
        stored = "" if verdict.stored is None else "in the store   " if verdict.stored else "not in store   "
        here = MADE if verdict.here else DUE
        lines.append(f"{verdict.stage:20}{verdict.key}  {here:12}{stored}{'; '.join(verdict.reasons)}".rstrip())
    count = sum(not verdict.here for verdict in verdicts)
    stored = [verdict.stored for verdict in verdicts if verdict.stored is not None]
    lines.append(f"\nhere {count} of {len(verdicts)} stages would run" + (f", on the cluster {stored.count(False)}" if stored else ""))
    return "\n".join(lines)
