"""Answers next to the truth: one row per held-out item with its score in [0, 1]."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from unimed.config import Evaluate
from unimed.data import masks
from unimed.data.records import SEG
from unimed.data.samples import Sample, Turn
from unimed.eval import answers, metrics, predict
from unimed.eval.predict import Answer
from unimed.model.assemble import Assembled
from unimed.model.processor import Message


@dataclass(frozen=True)
class Asking:
    """One way of asking a model: for which stage, under which variant, with which prompt, looking or not, and how freely."""

    stage: str
    task: str
    variant: str = ""
    ask: Callable[[Sample], list[Message]] = predict.question
    blank: bool = False
    temperature: float = 0.0


def score(made: Assembled, samples: Sequence[Sample], asking: Asking, settings: Evaluate) -> pd.DataFrame:
    """A row per sample: who was asked what, what was said, what is true, and the score."""
    how = {"ask": asking.ask, "blank": asking.blank, "temperature": asking.temperature}
    said = predict.answers(made, samples, settings.max_new_tokens, settings.batch_size, **how)
    return pd.DataFrame([_row(sample, answer, asking) for sample, answer in zip(samples, said, strict=True)])


def _row(sample: Sample, said: Answer, asking: Asking) -> dict[str, Any]:
    turn = sample.turns[-1]
    return {
        "stage": asking.stage,
        "task": asking.task,
        "variant": asking.variant,
        "question_type": turn.question_type,
        "answer_type": turn.answer_type,
        "modality": sample.modality,
        "dataset": sample.dataset,
        "case": sample.case,
        "sample_id": sample.sample_id,
        "conversation_id": turn.conversation_id,
        "question": turn.question,
        "truth": truth(turn),
        "prediction": said.text,
        "score": item_score(turn, said),
        "answer_rle": json.dumps(said.rles),
        "truth_rle": json.dumps([masks.encode(mask) for mask in turn.targets]),
        "region_rle": json.dumps([masks.encode(mask) for mask in turn.regions]),
        "height": sample.height,
        "width": sample.width,
    }


def truth(turn: Turn) -> str:
    """The right answer in words; for multiple choice letter and option."""
    return f"{turn.solution}) {turn.options[ord(turn.solution) - ord('A')]}" if turn.options else turn.answer


def item_score(turn: Turn, said: Answer) -> float:
    """How right an answer is.

    Masks: mean Dice over the targets, 0 for each that was not pointed at; for an absent target 1 without `<SEG>`, else 0.
    Multiple choice: the option named, by letter or by words. Closed questions: the option meant. Else the same words.
    """
    if turn.targets or (turn.task == "grounding"):
        return mask_score(turn, said)
    if turn.options:
        return float(answers.lenient_answer(said.text, turn.options, turn.solution))
    match = answers.closed_match if turn.answer_type == "CLOSED" else metrics.open_match
    return float(match(said.text, turn.answer))


def mask_score(turn: Turn, said: Answer) -> float:
    """Mean Dice of predicted and true masks in order; absent targets want none."""
    if not turn.targets:
        return float(SEG not in said.text)
    drawn = [masks.decode(rle, turn.height, turn.width) for rle in said.rles[: len(turn.targets)]]
    return float(np.sum([metrics.dice(true, mask) for true, mask in zip(turn.targets, drawn, strict=False)]) / len(turn.targets))
