"""What a gate asks, one check a question, of five kinds: quality, comparison (comparison.py), data, provenance, safety.

What a check is there to find makes it fail; nothing here raises for it.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from unimed.data.tables import Tables, tally
from unimed.errors import InputError
from unimed.eval.ladder import Row
from unimed.model import artifacts
from unimed.release.parts import PARENTS
from unimed.settings import Gate

ENDINGS = (".safetensors", ".json", ".jinja", ".txt")
"""What stages write into model folders: weights, settings, a chat template that is rendered in a sandbox, the words of a tokenizer."""

_DIGITS = 4
"""Decimal places of a ladder; a margin is rounded to as many, so that 0.7 lies 0.3 above 0.4."""

_SHOWN = 3
"""Offenders named in a check."""


@dataclass(frozen=True)
class Check:
    """One question with its answer; `kind` is quality, comparison, data, provenance or safety."""

    kind: str
    name: str
    passed: bool
    found: str
    expected: str

    @property
    def sentence(self) -> str:
        """The check in words."""
        return f"{self.kind}: {self.name}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True)
class Validated:
    """The data of a task as validation left them: rows, verdict, manifest, and their hash as DVC writes it."""

    tables: Tables
    verdict: dict[str, Any]
    manifest: dict[str, Any]
    digest: str

    @property
    def licences(self) -> dict[str, int]:
        """Images by licence."""
        return tally(self.tables.samples["licence"])

    def patients(self, *splits: str) -> set[tuple[str, str]]:
        """Data set and case of the images in these splits."""
        rows = self.tables.samples[self.tables.samples["split"].isin(splits)]
        return set(zip(rows["dataset"], rows["case"], strict=True))


@dataclass(frozen=True)
class _Bound:
    """A demand on a row: how much the row has to spare, and the numbers it must have for that."""

    name: str
    expected: str
    spare: Callable[[Any], float]
    needs: tuple[str, ...] = ("value", "low", "high")


def quality(rows: Sequence[Row], gate: Gate) -> Iterator[Check]:
    """A check for every floor, ceiling and gap; a row that is missing, has no value or rests on too few items fails it."""
    known = {f"{row.stage} / {row.metric}": row for row in rows}
    for bound in _bounds(gate):
        row = known.get(bound.name)
        lacks = _lack(row, bound, gate.least_items)
        passed = not lacks and round(bound.spare(row), _DIGITS) >= 0
        yield Check("quality", bound.name, passed, lacks or _shown(row), bound.expected)


def _bounds(gate: Gate) -> Iterator[_Bound]:
    for name, floor in gate.floors.items():
        yield _Bound(name, f"a low end of at least {floor:g}", lambda row, floor=floor: row.low - floor)
    for name, ceiling in gate.ceilings.items():
        yield _Bound(name, f"a high end of at most {ceiling:g}", lambda row, ceiling=ceiling: ceiling - row.high)
    for name, gap in gate.gaps.items():
        where = f"at least {gap:g} above" if gap >= 0 else f"at most {-gap:g} below"
        needs = ("value", "low", "high", "baseline")
        yield _Bound(name, f"a low end {where} the baseline", lambda row, gap=gap: row.low - row.baseline - gap, needs)


def _lack(row: Row | None, bound: _Bound, least_items: int) -> str:
    """Why a row cannot be held against a bound; empty when it can."""
    if row is None:
        return "no such row in the ladder"
    if missing := [name for name in bound.needs if not _is_number(getattr(row, name))]:
        return f"no {missing[0]}"
    if not _is_number(row.n) or row.n < least_items:
        return f"{row.n} of the {least_items} items that it takes to say something"
    return ""


def _is_number(found: Any) -> bool:
    return isinstance(found, int | float) and math.isfinite(found)


def _shown(row: Any) -> str:
    baseline = "" if row.baseline is None else f", baseline {row.baseline:.3f}"
    return f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f}), n {row.n:,}{baseline}"


def data(found: Mapping[str, Validated], gate: Gate) -> Iterator[Check]:
    """Whether each task's data passed validation, are what its verdict counts, may be used, and hold enough patients apart."""
    for task, valid in found.items():
        yield _contract(task, valid)
        yield _rows(task, valid)
        forbidden = [licence for licence in valid.licences if licence not in gate.licences]
        allowed = f"only {', '.join(gate.licences)}"
        yield Check("data", f"licences of {task}", not forbidden, _listed(forbidden or valid.licences), allowed)
        held_out, enough = len(valid.patients("test")), f"{gate.least_patients} or more"
        yield Check("data", f"held-out patients of {task}", held_out >= gate.least_patients, str(held_out), enough)
    seen = {patient for valid in found.values() for patient in valid.patients("train", "val")}
    both = sorted({"/".join(patient) for valid in found.values() for patient in valid.patients("test") & seen})
    yield Check("data", "held-out patients that some task trains on", not both, _listed(both), "none")


def _contract(task: str, valid: Validated) -> Check:
    broken = [one["name"] for one in valid.verdict["expectations"] if one["severity"] == "stop" and one["failed"]]
    passed = valid.verdict["passed"] is True
    found = f"{broken[0]} broken" if broken else "it passed" if passed else "it did not pass"
    return Check("data", f"contract of {task}", passed and not broken, found, "a verdict that it passed")


def _rows(task: str, valid: Validated) -> Check:
    counts = {name: len(rows) for name, rows in vars(valid.tables).items()}
    passed = valid.verdict["kept"] == counts and valid.manifest["counts"] == valid.tables.counts()
    noted = "" if passed else f", where the verdict has {_counted(valid.verdict['kept'])}"
    return Check("data", f"rows of {task}", passed, _counted(counts) + noted, "as many as verdict and manifest count")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts.get(name, 0):,} {name}" for name in ("samples", "masks", "conversations"))


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    """The first few names and how many more there are."""
    shown, more = list(names)[:_SHOWN], len(names) - _SHOWN
    return (", ".join(shown) or "none") + (f" and {more} more" if more > 0 else "")


def provenance(folders: Mapping[str, Path], found: Mapping[str, Validated], scored: Mapping[str, Any]) -> Iterator[Check]:
    """Whether files are those that manifests name, parents the folders given, and the evaluation one of these models and data.

    `scored` holds what was evaluated: the manifest hashes of "models" and the DVC hashes of "data".
    """
    models = {name: artifacts.sha256(folder / artifacts.MANIFEST) for name, folder in folders.items()}
    digests = {task: valid.digest for task, valid in found.items()}
    for name, folder in folders.items():
        try:
            manifest, fault = artifacts.verify(folder), ""
        except InputError as error:
            manifest, fault = {}, str(error)
        yield Check("provenance", f"files of {name}", not fault, fault or "just these", "those that its manifest names, with their hashes")
        if manifest:
            parents = {parent: models[folder] for parent, folder in PARENTS[name].items()}
            yield _same(f"parents of {name}", _hashes(manifest["parents"]), parents, is_whole=True)
        if manifest and PARENTS[name]:
            yield _same(f"data that {name} was trained on", manifest.get("data") or {"record of them": ""}, digests)
    yield _same("models that were evaluated", models, scored["models"])
    yield _same("data that they were evaluated on", digests, scored["data"])


def _hashes(parents: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record.get("sha256") if isinstance(record, dict) else None for name, record in parents.items()}


def _same(name: str, given: Mapping[str, Any], expected: Mapping[str, Any], is_whole: bool = False) -> Check:
    """Whether what is given has the hashes expected and, if it is to be whole, whether nothing expected is missing."""
    wrong = [key for key, digest in given.items() if digest != expected.get(key)]
    wrong += [key for key in expected if is_whole and key not in given]
    return Check("provenance", name, not wrong, f"another or no {_listed(wrong)}" if wrong else _listed(given), "those given here")


def safety(folders: Mapping[str, Path]) -> Iterator[Check]:
    """Whether every model folder holds only files that cannot run when they are read, and these are what their endings say."""
    for name, folder in folders.items():
        strange = [f"{path.relative_to(folder)} ({fault})" for path in sorted(folder.rglob("*")) if (fault := _danger(path))]
        yield Check("safety", f"files of {name}", not strange, _listed(strange) if strange else "only such", f"only {', '.join(ENDINGS)}")


def _danger(path: Path) -> str:
    """Why a file has no place in a model folder; empty for one that has, and for folders."""
    if path.is_symlink():
        return "a link"
    if path.is_dir():
        return ""
    if not path.is_file() or path.suffix not in ENDINGS:
        return "its kind"
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                pass
        if path.suffix == ".json":
            json.loads(path.read_bytes())
    except (SafetensorError, OSError, ValueError):
        return f"no {path.suffix[1:]}"
    return ""
