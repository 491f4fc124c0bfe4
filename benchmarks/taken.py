"""What the stages of a full run took, as tables: steps, memory, share of the card's limit, and where the time of each stage went."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.stage import Marks
from benchmarks.timed import matmul_rate
from pipelines.stages import Stage
from unimed import hashes, throughput
from unimed.data import samples
from unimed.model.configuration import UniMedConfig
from unimed.model.processor import UniMedProcessor
from unimed.train.batch import IGNORED, Collator
from unimed.train.memory import GIB
from unimed.train.rows import fullest

TRAINED = ("align", "vqa_expert", "grounding_expert", "moe_router", "grpo")
SEEN = 32
"""Samples of a task that tell how much a sample must compute."""

HEAD = ("stage", "rows a step (preset)", "s a step", "samples/s", "GPU s", "peak GiB", "share of the limit", "artifact bytes")
PARTS = ("stage", "start, hashing inputs", "loading", "training", "saving", "all")


@dataclass(frozen=True)
class Ran:
    """A stage that ran: when its process began and ended, and what it noted meanwhile."""

    stage: Stage
    began: float
    ended: float
    marks: Marks

    @classmethod
    def read(cls, stage: Stage, file: Path) -> "Ran":
        """What was told of a stage."""
        said = json.loads(file.read_text())
        return cls(stage, said["began"], said["ended"], Marks(**said["marks"]))

    def told(self) -> str:
        """What it took, as JSON."""
        return json.dumps({"began": self.began, "ended": self.ended, "marks": asdict(self.marks)}) + "\n"

    @property
    def seconds(self) -> float:
        """From its process's beginning to its end."""
        return self.ended - self.began

    def size(self, folder: Path) -> int:
        """Bytes of what it wrote."""
        return sum(hashes.size(folder / path) for path in self.stage.outputs.values())

    def logged(self, folder: Path) -> list[dict[str, float]]:
        """Its lines of metrics, one for each step."""
        [file] = (folder / "runs").glob(f"{self.stage.component}-*/metrics.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]


def step_seconds(logged: Sequence[Mapping[str, float]], label: str) -> float:
    """Median time between the ends of the steps of one training: the first step, which warms up, ends where the count begins."""
    own = [entry for entry in logged if any(name.startswith(f"{label}/") for name in entry)]
    return median((after["time"] - before["time"]) / (after["step"] - before["step"]) for before, after in pairwise(own))


def table(folder: Path, ran: Mapping[str, Ran], preset: Mapping[str, Any], numbers: Mapping[str, Any]) -> list[str]:
    """A row for each training beside its share of the card's limit, the foundation's first."""
    first = ran["foundation"]
    rate = matmul_rate()
    rows = [HEAD, ["---"] * len(HEAD), ["foundation", "", "", "", *_whole(folder, first, "")]]
    for name in MIXES:
        batches = [each[name]["batch_size"] for each in (numbers, preset)]
        seconds, row = step_seconds(ran[name].logged(folder), name), a_row(folder, name, numbers)
        share = f"{100 * batches[0] / seconds * row.operations / rate:.3g}%"
        rows.append([name, *_steps(*batches, seconds, row.samples), *_whole(folder, ran[name], share)])
    rows += _reasoning(folder, ran["grpo"], preset["grpo"], numbers["grpo"])
    steps = numbers["align"]["max_steps"]
    told = f"Of presets/full.yaml {steps} steps a training, warm-up 1, batches as the table says. The limit: {rate / 1e12:.4g} TFLOP/s."
    return [told, "", *map(_row, rows)]


def _reasoning(folder: Path, ran: Ran, *given: Mapping[str, Any]) -> Iterator[list[str]]:
    """Both trainings of stage 5 as the preset has them and as they ran; a step of the second has answers instead of rows."""
    logged = ran.logged(folder)
    asked, batch = (each["cold_start"]["batch_size"] for each in given)
    yield ["grpo: cold start", f"{batch} ({asked})", f"{step_seconds(logged, 'cold_start'):.3g}", *[""] * 5]
    asked, batch = (each["batch_size"] * each["group_size"] for each in given)
    yield ["grpo: answers", *_steps(batch, asked, step_seconds(logged, "grpo"), 1), *_whole(folder, ran, "")]


def _steps(batch: int, asked: int, seconds: float, samples: float) -> list[str]:
    return [f"{batch} ({asked})", f"{seconds:.3g}", f"{batch * samples / seconds:.3g}"]


def _whole(folder: Path, ran: Ran, share: str) -> list[str]:
    return [f"{ran.seconds:.0f}", f"{ran.marks.peak / GIB:.1f}", share, f"{ran.size(folder):,}"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def parts(folder: Path, ran: Mapping[str, Ran]) -> Iterator[str]:
    """Where the seconds of each stage went; the whole of a stage that trains nothing counts as saving."""
    yield from map(_row, (PARTS, ["---"] * len(PARTS)))
    for name, one in ran.items():
        marks = one.marks
        spans = [marks.called - one.began, 0.0, 0.0, marks.placed - marks.called]
        if marks.first_pass:
            last = one.logged(folder)[-1]["time"]
            spans[1:] = [marks.first_pass - marks.called, last - marks.first_pass, marks.placed - last]
        yield _row([name, *(f"{span:.1f}" for span in spans), f"{one.seconds:.1f}"])


MIXES = {
    "align": lambda own: [("alignment", 1.0)],
    "vqa_expert": lambda own: [("vqa", 1.0)],
    "grounding_expert": lambda own: [("grounding", 1 - own["vqa_share"]), ("vqa", own["vqa_share"])],
    "moe_router": lambda own: [("vqa", 1 - own["grounding_share"]), ("grounding", own["grounding_share"])],
}
"""The tasks that a stage trains on with their shares; what stage 5 must compute depends on what it answers."""


class Row(NamedTuple):
    """What a packed row holds and takes, on the mean."""

    samples: float
    operations: float


def a_row(folder: Path, name: str, numbers: Mapping[str, Any]) -> Row:
    """A row of a stage, by some of its samples, every view of an image counted as one image."""
    config = UniMedConfig.from_pretrained(folder / "models/foundation")
    collator = Collator(UniMedProcessor.from_pretrained(folder / "models/foundation/processor"))
    own, pieces = numbers[name], []
    for task, share in MIXES[name](own):
        found = samples.read(folder / "data/subsets" / task, folder / "data/shards", split="train", turns=own.get("turns", 1), seed=0)
        pieces += [collator.piece(sample) for sample in islice(found, round(share * SEEN))]
    rows = len(fullest([len(piece.ids) for piece in pieces], own["row_tokens"]))
    total = 0.0
    for piece in pieces:
        views = int((piece.ids == config.image_token_id).sum()) // config.tokens_per_view
        answered = int((piece.labels != IGNORED).sum())
        total += throughput.flops(config, views, len(piece.ids), answered, fused=name == "align")
    return Row(len(pieces) / rows, total / rows)
