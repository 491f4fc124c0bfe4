"""Whether a model may be released: every check answered, with the verdict as JSON and as a page for people. A rejection is a result."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from unimed import NOTICE, hashes, pages
from unimed.data.streamed import load
from unimed.data.tables import Tables, write_json
from unimed.errors import InputError
from unimed.eval import charts, ladder, worst
from unimed.eval.cases import Cells
from unimed.eval.ladder import Row
from unimed.model import artifacts
from unimed.release import checks, comparison, scores
from unimed.release.checks import Check, Validated
from unimed.release.comparison import Champion
from unimed.settings import Gate

VERDICT, REPORT, SCORED = "verdict.json", "report.html", "scored.json"
TEMPLATE = Path(__file__).with_name("gate.html.j2")


@dataclass(frozen=True)
class Candidate:
    """What is to be judged: folders of validated data by task and of models by name, and an evaluation of them."""

    data: Mapping[str, Path]
    models: Mapping[str, Path]
    report: Path


def write(folder: Path, candidate: Candidate, gate: Gate, champion: Champion | None = None) -> dict[str, Any]:
    """Judge a candidate, beside the champion if any; writes verdict.json, scores.parquet, report.html and returns the verdict.

    The same input gives the same bytes. Raises InputError for a folder that holds no validated data, no model or no evaluation; whatever
    else is wrong is a failed check.
    """
    for model in candidate.models.values():
        if not (model / artifacts.MANIFEST).is_file():
            raise InputError(f"{model}: expected a model folder with a {artifacts.MANIFEST}, found none")
    found = {task: validated(place) for task, place in candidate.data.items()}
    rows, scored = ladder.read(candidate.report / "ladder.json"), _scored(candidate.report / SCORED)
    per_item, shown = scores.table(candidate.report), worst.read(candidate.report)
    data = {task: valid.digest for task, valid in found.items()}
    answered = [
        *checks.quality(rows, gate),
        *comparison.modalities(per_item, gate),
        *comparison.checks(per_item, data, champion, gate),
        *checks.data(found, gate),
        *checks.provenance(candidate.models, found, scored),
        *checks.safety(candidate.models),
    ]
    verdict = {
        "passed": all(check.passed for check in answered),
        "reasons": [check.sentence for check in answered if not check.passed],
        "checks": [asdict(check) for check in answered],
        "models": {name: artifacts.sha256(place / artifacts.MANIFEST) for name, place in candidate.models.items()},
        "data": data,
        "champion": {"version": champion.version, "manifest_sha256": champion.manifest_sha256} if champion else None,
        "licences": {task: valid.licences for task, valid in found.items()},
        "evaluation": hashes.dvc_hash(candidate.report),
        "rows": [asdict(row) for row in rows],
        "bounds": gate.model_dump(mode="json"),
        "notice": NOTICE,
    }
    folder.mkdir(parents=True)
    write_json(folder / VERDICT, verdict)
    scores.write(per_item, folder)
    (folder / REPORT).write_text(_page(verdict, answered, rows, shown), encoding="utf-8")
    return verdict


def validated(folder: Path) -> Validated:
    """What validation left in a folder. Raises InputError when it left nothing there."""
    verdict, manifest = load(folder / "verdict.json"), load(folder / "manifest.json")
    for name, content, keys in (("verdict", verdict, {"passed", "kept", "expectations"}), ("manifest", manifest, {"counts"})):
        if not isinstance(content, dict) or not keys <= content.keys():
            raise InputError(f"{folder}/{name}.json: expected a {name} of validate, found other JSON")
    return Validated(Tables.read(folder), verdict, manifest, hashes.dvc_hash(folder))


def _scored(path: Path) -> dict[str, Any]:
    scored = load(path)
    if not isinstance(scored, dict) or not all(isinstance(scored.get(key), dict) for key in ("models", "data")):
        raise InputError(f"{path}: expected the hashes of models and data that evaluate writes, found other JSON")
    return scored


def _page(verdict: Mapping[str, Any], answered: Sequence[Check], rows: Sequence[Row], shown: Sequence[Cells]) -> str:
    drawn = {f"{row.stage} / {row.metric}": _drawn(row) for row in rows}
    kinds = [(kind, list(group)) for kind, group in groupby(answered, lambda check: check.kind)]
    return pages.render(TEMPLATE, verdict=verdict, kinds=kinds, drawn=drawn, worst=shown)


def _drawn(row: Row) -> str:
    """The row as a drawing, when it and its baseline are shares."""
    if (
        row.value is None
        or row.low is None
        or row.high is None
        or not all(0 <= share <= 1 for share in (row.low, row.high, row.baseline or 0))
    ):
        return ""
    return charts.whisker(row.value, row.low, row.high, row.baseline)
