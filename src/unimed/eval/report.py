"""The evaluation as one HTML page that needs nothing beside it, neither file nor script nor network."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unimed import pages
from unimed.eval import cases, charts
from unimed.eval.bootstrap import Interval, interval, paired_interval
from unimed.eval.cases import Cells, Images
from unimed.eval.ladder import Row

STAGES = {
    "foundation": "Foundation",
    "align": "1 Alignment",
    "without_detail": "Ablation: trained without the fine-detail path",
    "vqa_expert": "2 VQA expert",
    "grounding_expert": "3 Grounding expert",
    "moe_router": "4 Router",
    "cold_start": "5 Reasoning, cold start",
    "grpo": "5 Reasoning",
}
"""Stage names as the page prints them, in training order; other stages count as earlier than these."""
TASKS = {"vqa": "VQA", "grounding": "Grounding", "reasoning": "Reasoning"}
ENOUGH_ITEMS = 200
"""Below this the interval of a share is wider than 13 points: the page says that such a row means nothing."""
_CURVES_PER_STAGE = 6
_TEMPLATE = Path(__file__).with_name("report.html.j2")


def write(
    folder: Path,
    rows: Sequence[Row],
    predictions: pd.DataFrame,
    images: Images,
    curves: Mapping[str, Sequence[Mapping[str, float | int]]],
    router_use: Sequence[Mapping[str, Any]],
    notes: Mapping[str, Any],
) -> Path:
    """Write report.html into the folder and return its path; the same inputs give the same bytes.

    `images` gives the image of a sample_id. `curves` holds per stage the logged metrics with their "step"; those that name a loss or a
    reward are drawn. `router_use` has entries of task, layer, expert and share in [0, 1].
    `notes` may have "warning" (a sentence for the top of the page), "data", "licences" and "baselines" (name to text or number each).
    """
    records: list[Cells] = [{str(name): cell for name, cell in row.items()} for row in predictions.to_dict("records")]
    filters = {"number": _number, "bounds": _bounds, "words": _words, "modality": _modality, "short": charts.short}
    page = pages.render(
        _TEMPLATE,
        filters,
        warnings=_warnings(rows, notes),
        facts=_facts(records),
        verdicts=[(STAGES.get(stage, _words(stage)), [*map(_verdict, group)]) for stage, group in groupby(rows, lambda row: row.stage)],
        breakdowns=[part for task in TASKS if (part := _breakdown(records, task))],
        overlays=list(cases.overlays(_latest(records, "grounding"), images)),
        worst=cases.worst_answers(_latest(records, "vqa"), images),
        reasoning=cases.reasoning(_latest(records, "reasoning"), images),
        router=_router(router_use),
        curves=[(STAGES.get(stage, _words(stage)), *drawn) for stage, log in curves.items() for drawn in _curves(log)],
        conditions=_conditions(records),
        notes=notes,
        enough=ENOUGH_ITEMS,
        few=any(row.n < ENOUGH_ITEMS for row in rows),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _number(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.3f}".replace("-", "−")


def _bounds(found: Row | Interval) -> str:
    low = _number(found.low)
    return low if low == "–" else f"{low} to {_number(found.high)}"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("/", " / ")


def _modality(name: str) -> str:
    """The modality as readers write it: CT, MR, PET, X-ray, otherwise the word."""
    return name.upper() if len(name) <= 3 else name.replace("x_ray", "X-ray").replace("_", " ")


def _warnings(rows: Sequence[Row], notes: Mapping[str, Any]) -> list[str]:
    few = sum(row.n < ENOUGH_ITEMS for row in rows)
    counted = f"{few} of {len(rows)} rows below rest on fewer than {ENOUGH_ITEMS} items (marked †): these scores mean nothing."
    return [text for text in (notes.get("warning", ""), counted if few else "") if text]


def _facts(records: Sequence[Cells]) -> list[tuple[str, str]]:
    counts = {"predictions": len(records), "images": len({row["sample_id"] for row in records}), "patients": len(set(_patients(records)))}
    modalities = ", ".join(map(_modality, sorted({row["modality"] for row in records})))
    return [(name, f"{count:,}") for name, count in counts.items()] + [("modalities", modalities or "–")]


def _verdict(row: Row) -> Cells:
    """A ladder row with its distance to the baseline, and a drawing when it is a share."""
    numbers = [number for number in (row.value, row.low, row.high, row.baseline) if number is not None]
    is_share = "loss" not in row.metric and len(numbers) >= 3 and all(0 <= number <= 1 for number in numbers)
    cells: Cells = {"row": row, "few": row.n < ENOUGH_ITEMS, "apart": False, "distance": None, "drawn": ""}
    if row.value is not None and row.low is not None and row.high is not None:
        cells["drawn"] = charts.whisker(row.value, row.low, row.high, row.baseline) if is_share else ""
        if row.baseline is not None:
            cells["distance"] = row.value - row.baseline
            cells["apart"] = not row.low <= row.baseline <= row.high
    return cells


def _latest(records: Sequence[Cells], task: str, variant: str = "") -> list[Cells]:
    """The predictions of a task by the last stage that made any without a variant."""
    of_task = [row for row in records if row["task"] == task]
    order = list(STAGES)
    stages = {row["stage"] for row in of_task if row["variant"] == ""}
    last = max(stages, key=lambda stage: (order.index(stage) if stage in order else -1, stage), default="")
    return [row for row in of_task if row["stage"] == last and row["variant"] == variant]


def _scored(records: Sequence[Cells]) -> Interval:
    return interval([row["score"] for row in records], _patients(records), seed=0)


def _patients(records: Sequence[Cells]) -> list[tuple[str, str]]:
    return [(row["dataset"], row["case"]) for row in records]


def _breakdown(records: Sequence[Cells], task: str) -> Cells | None:
    """Scores of a task by modality and question type, beside those with the image blanked."""
    plain, blind = _latest(records, task), _latest(records, task, "blind")
    if not plain:
        return None
    parts = [("", [("all", _scored(plain), _scored(blind).mean)])]
    for title, column, naming in (("by modality", "modality", _modality), ("by question type", "question_type", _words)):
        blanked = cases.grouped(blind, column)
        groups = sorted(cases.grouped(plain, column).items())
        lines = [(naming(name), _scored(group), _scored(blanked.get(name, [])).mean) for name, group in groups]
        parts += [(title, lines)] if len(lines) > 1 else []
    return {"task": TASKS[task], "has_blind": bool(blind), "parts": parts}


def _router(router_use: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """One heat map per expert."""
    experts: dict[str, dict[tuple[str, int], float]] = {}
    for use in router_use:
        experts.setdefault(_task(use["expert"]), {})[_task(use["task"]), int(use["layer"])] = float(use["share"])
    return [(name, charts.heat_map(shares, f"share of the {name} expert by task and layer")) for name, shares in experts.items()]


def _task(name: str) -> str:
    return TASKS.get(name, _words(name))


def _curves(log: Sequence[Mapping[str, float | int]]) -> list[tuple[str, float | int, str]]:
    """Name, last value and drawing of each logged loss and reward that has at least two finite values, rewards by what they are for first.

    The loss of rewarded training is left out, because it says nothing: advantages sum to about zero whatever the policy earns.
    """
    known = dict.fromkeys(name for entry in log for name in entry)
    rewards = [name for name in known if name.startswith("rewards/") and name.endswith("/mean")]
    losses = [name for name in known if name.startswith("loss")]
    # A single part is the loss itself.
    names = [*rewards, "reward"] if rewards else losses[: 1 if len(losses) == 2 else None]
    drawn = []
    for name in names:
        points = [(entry["step"], entry[name]) for entry in log if name in entry and np.isfinite(entry[name])]
        if len(points) >= 2:
            steps, values = zip(*points, strict=True)
            drawn.append((name.removeprefix("rewards/").removesuffix("/mean"), values[-1], charts.curve(steps, values, name)))
    return drawn[:_CURVES_PER_STAGE]


def _conditions(records: Sequence[Cells]) -> list[Cells]:
    """Scores under other conditions than the plain one, with the paired distance to it."""
    found = []
    for stage, of_stage in cases.grouped(records, "stage").items():
        for task, of_task in cases.grouped(of_stage, "task").items():
            variants = cases.grouped(of_task, "variant")
            plain = variants.pop("", [])
            others = [(_words(name), _scored(group), _distance(group, plain)) for name, group in variants.items()]
            if plain and others:
                title = f"{STAGES.get(stage, _words(stage))}, {_task(task)}"
                found.append({"title": title, "lines": [("as trained", _scored(plain), None), *others]})
    return found


def _distance(group: Sequence[Cells], plain: Sequence[Cells]) -> Interval:
    """The mean difference of scores to the plain predictions, over the items that both have."""
    known = {(row["conversation_id"], row["question"]): row["score"] for row in plain}
    pairs = [(row, known[key]) for row in group if (key := (row["conversation_id"], row["question"])) in known]
    both = [row for row, _ in pairs]
    return paired_interval([row["score"] for row in both], [score for _, score in pairs], _patients(both), seed=0)
