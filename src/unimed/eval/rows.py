"""The ladder from predictions: what each stage is worth, each number beside the one it has to beat."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from unimed.data.records import SEG
from unimed.eval import answers, bootstrap
from unimed.eval.ladder import Row, measured

Frame = pd.DataFrame


@dataclass(frozen=True)
class Rung:
    """A row of the ladder before it is measured: the predictions that it is about, the value of each, and what stands beside it."""

    stage: str
    metric: str
    items: Frame
    values: pd.Series
    baseline: float | None = None
    whole: pd.Series | None = None
    """Where the row is a share of a whole: how much of it each item has to give; else the row is the mean of the values."""

    @property
    def name(self) -> str:
        """Stage and metric, as bounds name a row."""
        return f"{self.stage} / {self.metric}"

    def row(self, seed: int, samples: int) -> Row:
        """The row with its interval over resampled patients."""
        values, patients = self.values.to_numpy(), self.items["case"].tolist()
        if self.whole is None:
            found = bootstrap.interval(values, patients, seed, samples)
        else:
            found = bootstrap.ratio_interval(values, self.whole.to_numpy(), patients, seed, samples)
        return measured(self.stage, self.metric, found, self.baseline)


@dataclass(frozen=True)
class Scores:
    """All predictions of an evaluation, to be cut into rows."""

    table: Frame

    def of(self, stage: str, task: str, variant: str = "", kinds: tuple[str, ...] = ()) -> Frame:
        """The predictions of a stage on a task, of some question types or all."""
        rows = self.table
        rows = rows[(rows["stage"] == stage) & (rows["task"] == task) & (rows["variant"] == variant)]
        return rows[rows["question_type"].isin(kinds)] if kinds else rows

    def closed(self, stage: str, variant: str = "", kinds: tuple[str, ...] = ()) -> Frame:
        """The closed questions among a stage's VQA predictions."""
        rows = self.of(stage, "vqa", variant, kinds)
        return rows[rows["answer_type"] == "CLOSED"]

    def targets(self, stage: str, variant: str = "", present: bool = True) -> Frame:
        """Prompts for masks whose target is present, or those whose target is absent."""
        rows = self.of(stage, "grounding", variant)
        return rows[(rows["truth_rle"] != "[]") == present]

    def row(
        self, stage: str, metric: str, rows: Frame, baseline: Frame | None = None, value: Callable[[Frame], pd.Series] | None = None
    ) -> Rung:
        """One row of the ladder; the baseline's mean stands beside it."""
        values = (value(rows) if value else rows["score"]).astype(float)
        beside = float((value(baseline) if value else baseline["score"]).mean()) if baseline is not None and len(baseline) else None
        return Rung(stage, metric, rows, values, beside)

    def kept(self, stage: str, metric: str, rows: Frame, reference: Frame) -> Rung:
        """The share of a reference's score that is kept on the same items."""
        pairs = rows.merge(reference[["conversation_id", "score"]], on="conversation_id", suffixes=("", "_reference"))
        return Rung(stage, metric, pairs, pairs["score"], 1.0, whole=pairs["score_reference"])


def points(rows: Frame) -> pd.Series:
    """1 where the answer holds a `<SEG>`."""
    return rows["prediction"].str.contains(SEG, regex=False)


def well_formed(rows: Frame) -> pd.Series:
    """1 where the answer is a thought followed by an answer and nothing else."""
    return rows["prediction"].map(lambda text: answers.split_thought(text).well_formed)


def rungs(scores: Scores) -> list[Rung]:
    """Every row after stage 1, in the order of the stages."""
    return [*_vqa(scores), *_grounding(scores), *_router(scores), *_reasoning(scores)]


def _vqa(s: Scores) -> list[Rung]:
    stage, blind, detail = "vqa_expert", s.closed("vqa_expert", "blind"), ("detail",)
    blurred = s.closed("without_detail", kinds=detail)
    kinds = sorted(set(s.closed(stage)["question_type"]))
    return [
        s.row(stage, "closed accuracy (baseline: image blanked)", s.closed(stage), blind),
        s.row(stage, "closed accuracy by answer vocabulary (no image)", s.closed(stage, "vocabulary")),
        s.row(stage, "fine-detail accuracy (baseline: gates at 0)", s.closed(stage, kinds=detail), blurred),
        s.row(stage, "region accuracy (baseline: image blanked)", _regions(s, ""), _regions(s, "blind")),
        *(s.row(stage, f"closed accuracy: {kind}", s.closed(stage, kinds=(kind,)), s.closed(stage, "blind", (kind,))) for kind in kinds),
    ]


def _regions(s: Scores, variant: str) -> Frame:
    return s.of("vqa_expert", "vqa", variant, ("region",))


def _grounding(s: Scores) -> list[Rung]:
    stage = "grounding_expert"
    return [
        s.row(stage, "mDice (baseline: image blanked)", s.targets(stage), s.targets(stage, "blind")),
        s.row(stage, "SEG emitted where a target is present", s.targets(stage), value=points),
        s.row(stage, "SEG emitted on questions", s.of(stage, "vqa"), value=points),
        s.row(stage, "absent target refused (baseline: image blanked)", s.targets(stage, present=False), s.targets(stage, "blind", False)),
    ]


def _router(s: Scores) -> list[Rung]:
    stage, vqa, dice = "moe_router", s.closed("vqa_expert"), s.targets("grounding_expert")
    rows = [
        s.row(stage, "closed accuracy (baseline: vqa expert)", s.closed(stage), vqa),
        s.kept(stage, "share of the vqa expert's accuracy kept", s.closed(stage), vqa),
        s.row(stage, "mDice (baseline: grounding expert)", s.targets(stage), dice),
        s.kept(stage, "share of the grounding expert's mDice kept", s.targets(stage), dice),
    ]
    for variant in ("uniform", "merged", "oracle"):
        rows.append(s.row(stage, f"closed accuracy, {variant}", s.closed(stage, variant), vqa))
        rows.append(s.row(stage, f"mDice, {variant}", s.targets(stage, variant), dice))
    return rows


def _reasoning(s: Scores) -> list[Rung]:
    stage, before = "grpo", s.of("moe_router", "reasoning")
    thought, cold = s.of(stage, "reasoning"), s.of("cold_start", "reasoning")
    sampled = s.of(stage, "reasoning", "sampled"), s.of("cold_start", "reasoning", "sampled")
    return [
        s.row(stage, "format (baseline: cold start)", thought, cold, value=well_formed),
        s.row(stage, "reasoning accuracy (baseline: stage 4)", thought, before),
        s.row(stage, "reasoning accuracy (baseline: cold start)", thought, cold),
        s.row(stage, "reasoning accuracy (baseline: image blanked)", thought, s.of(stage, "reasoning", "blind")),
        s.row(stage, "sampled format (temperature 1; baseline: cold start)", *sampled, value=well_formed),
        s.row(stage, "sampled reasoning accuracy (temperature 1; baseline: cold start)", *sampled),
        s.row(stage, "reasoning accuracy without thinking (baseline: stage 4)", s.of(stage, "reasoning", "no_think"), before),
        s.row(stage, "closed accuracy (baseline: stage 4)", s.closed(stage), s.closed("moe_router")),
        s.row(stage, "mDice (baseline: stage 4)", s.targets(stage), s.targets("moe_router")),
    ]
