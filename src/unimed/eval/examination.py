"""Which model is asked what: the plan of an evaluation, one stage after the other."""

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from unimed.config import Evaluate
from unimed.data import samples
from unimed.data.samples import Sample
from unimed.eval import baselines, bootstrap
from unimed.eval.ladder import Row, measured
from unimed.eval.scoring import Asking, score
from unimed.model import adapters, artifacts, assemble, experts, router_use
from unimed.model.assemble import Assembled
from unimed.rl.prompts import reasoning_messages
from unimed.train.batch import Collator, blanked

log = logging.getLogger("evaluate")


@dataclass(frozen=True)
class Folders:
    """Where the data and the stages' models lie."""

    data: dict[str, Path]
    shards: Path
    foundation: Path
    aligned: Path
    vqa_expert: Path
    without_detail: Path
    grounding_expert: Path
    router: Path
    reasoner: Path


@dataclass
class Examination:
    """Asks every stage its questions and gathers the answers."""

    folders: Folders
    settings: Evaluate
    seed: int
    tables: list[pd.DataFrame] = field(default_factory=list)
    router_use: list[dict[str, Any]] = field(default_factory=list)

    def held_out(self, task: str) -> list[Sample]:
        """The test samples of a task; with `max_items` at most so many of each question type, the same random ones for every model."""
        kinds: dict[str, list[Sample]] = {}
        for sample in samples.read(self.folders.data[task], self.folders.shards, split="test"):
            kinds.setdefault(sample.turns[-1].question_type, []).append(sample)
        most, draw = self.settings.max_items, random.Random(f"{self.seed}/{task}")
        chosen = [found if most is None else draw.sample(found, min(most, len(found))) for _, found in sorted(kinds.items())]
        return [sample for found in chosen for sample in found]

    def ask(self, made: Assembled, *askings: Asking) -> None:
        """Score a model, on the GPU if there is one, on the held-out samples of each asking's task."""
        assemble.placed(made)
        for asking in askings:
            held_out = self.held_out(asking.task)
            log.info("%s: %d %s items%s", asking.stage, len(held_out), asking.task, f", {asking.variant}" if asking.variant else "")
            if held_out:
                self.tables.append(score(made, held_out, asking, self.settings))

    def examine(self) -> pd.DataFrame:
        """The answers of every stage, as one table."""
        f = self.folders
        self.ask(
            assemble.expert(f.foundation, f.aligned, f.vqa_expert, "vqa"),
            Asking("vqa_expert", "vqa"),
            Asking("vqa_expert", "vqa", "blind", blank=True),
        )
        self.ask(assemble.expert(f.foundation, f.without_detail, f.without_detail, "vqa"), Asking("without_detail", "vqa"))
        pointing = assemble.expert(f.foundation, f.aligned, f.grounding_expert, "grounding")
        self.ask(
            pointing,
            Asking("grounding_expert", "grounding"),
            Asking("grounding_expert", "grounding", "blind", blank=True),
            Asking("grounding_expert", "vqa"),
        )
        self._examine_router()
        self._examine_reasoner()
        self._answer_by_vocabulary()
        return pd.concat(self.tables, ignore_index=True)

    def _router_model(self) -> Assembled:
        f = self.folders
        return assemble.trained_router(f.foundation, f.aligned, {"vqa": f.vqa_expert, "grounding": f.grounding_expert}, f.router)

    def _examine_router(self) -> None:
        """The routed model, and beside it the mixes that need no training."""
        stage, made = "moe_router", self._router_model()
        for task in ("vqa", "grounding"):
            with router_use.watched(made) as seen:
                self.ask(made, Asking(stage, task))
            self.router_use += [{"task": task, "layer": layer, "expert": name, "share": share} for layer, name, share in seen.shares()]
        self.ask(made, Asking(stage, "reasoning", ask=partial(reasoning_messages, think=False)))
        for task, expert in (("vqa", "vqa"), ("grounding", "grounding")):
            for variant, shares in (
                ("uniform", (0.5, 0.5)),
                ("merged", (1.0, 1.0)),
                ("oracle", tuple(float(n == expert) for n in assemble.EXPERTS)),
            ):
                experts.fix(made.model, shares)
                self.ask(made, Asking(stage, task, variant))

    def _examine_reasoner(self) -> None:
        """The reasoning model with and without thinking and looking, and as it was after the cold start."""
        made = self._router_model()
        language = made.model.model.language_model
        thinking, direct = (partial(reasoning_messages, think=think) for think in (True, False))
        adapters.load(language, "reasoner", adapters.read(self.folders.reasoner))
        self.ask(
            made, Asking("grpo", "reasoning", ask=thinking), Asking("grpo", "reasoning", "sampled", thinking, temperature=1.0),
            Asking("grpo", "reasoning", "no_think", direct),
            Asking("grpo", "reasoning", "blind", thinking, blank=True), Asking("grpo", "vqa"), Asking("grpo", "grounding"),
        )  # fmt: skip
        if (self.folders.reasoner / "cold_start").is_dir():
            adapters.replace(language, "reasoner", adapters.read(self.folders.reasoner / "cold_start"))
            self.ask(
                made,
                Asking("cold_start", "reasoning", ask=thinking),
                Asking("cold_start", "reasoning", "sampled", thinking, temperature=1.0),
            )

    def _answer_by_vocabulary(self) -> None:
        """What the most frequent training answer to each question scores on the closed questions."""
        asked = [table[(table["task"] == "vqa") & (table["stage"] == "vqa_expert") & (table["variant"] == "")] for table in self.tables[:1]]
        if not asked or asked[0].empty:
            return
        train = [turn for sample in samples.read(self.folders.data["vqa"], self.folders.shards, split="train") for turn in sample.turns]
        known = [baselines.Asked(turn.question, turn.answer, turn.question_type) for turn in train]
        unknown = [baselines.Asked(row.question, row.truth, row.question_type) for row in asked[0].itertuples()]
        self.tables.append(asked[0].assign(variant="vocabulary", prediction="", score=baselines.answer_vocabulary(known, unknown)))

    def caption_rows(self) -> list[Row]:
        """Stage 1: mean loss per caption, aligned, and beside it unaligned and with the image blanked."""
        f, held_out = self.folders, self.held_out("alignment")
        cases = [sample.case for sample in held_out]
        after = assemble.aligned(f.foundation, f.aligned)
        losses = {"aligned": caption_losses(after, held_out), "blank": caption_losses(after, held_out, blank=True)}
        losses["unaligned"] = caption_losses(assemble.foundation(f.foundation), held_out)
        found = {name: bootstrap.interval(values, cases, self.seed, self.settings.bootstrap_samples) for name, values in losses.items()}
        return [
            measured("align", "caption loss (baseline: unaligned)", found["aligned"], found["unaligned"].mean),
            measured("align", "caption loss (baseline: image blanked)", found["aligned"], found["blank"].mean),
        ]

    def curves(self) -> dict[str, list[dict[str, float]]]:
        """What every stage logged while it trained."""
        f = self.folders
        stages = {
            "align": f.aligned,
            "vqa_expert": f.vqa_expert,
            "grounding_expert": f.grounding_expert,
            "moe_router": f.router,
            "grpo": f.reasoner,
        }
        curves: dict[str, list[dict[str, float]]] = {}
        for name, folder in stages.items():
            for entry in json.loads((folder / artifacts.MANIFEST).read_text())["history"]:
                curves.setdefault(entry.pop("phase", name), []).append(entry)
        return curves


@torch.no_grad()
def caption_losses(made: Assembled, held_out: Sequence[Sample], blank: bool = False) -> list[float]:
    """The mean next-token loss of each caption, in nats, taken on the GPU if there is one."""
    collate, found, model = Collator(made.processor), [], assemble.placed(made).model
    for sample in held_out:
        batch = {name: value.to(model.device) for name, value in collate([sample]).items()}
        found.append(float(model(**(blanked(batch) if blank else batch)).loss))
    return found
