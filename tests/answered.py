"""Answers of an evaluation, made up: 24 patients in two modalities, ten items each, with as many right ones as a test asks for."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from unimed.data import masks
from unimed.eval import worst
from unimed.eval.ladder import Row
from unimed.settings import Gate

PATIENTS, ITEMS, SIDE = 24, 10, 64
CLOSED, DICE = "vqa_expert / closed accuracy (baseline: image blanked)", "grounding_expert / mDice (baseline: image blanked)"
SEG = "grounding_expert / SEG emitted on questions"
ROWS = (
    Row("vqa_expert", "closed accuracy (baseline: image blanked)", 0.9, 0.85, 0.95, 300, 0.5),
    Row("grounding_expert", "mDice (baseline: image blanked)", 0.8, 0.75, 0.85, 300, 0.1),
    Row("grounding_expert", "SEG emitted on questions", 0.01, 0.0, 0.02, 300),
)
GATE = Gate(
    floors={CLOSED: 0.8, DICE: 0.7}, ceilings={SEG: 0.05}, gaps={CLOSED: 0.3}, margins={CLOSED: 0.05, DICE: 0.05, SEG: 0.05},
    modality_floors={CLOSED: 0.8, DICE: 0.7}, least_items=200, least_patients=2, licences=("CC0-1.0", "CC-BY-4.0"),
)  # fmt: skip
"""A ladder with three rows, and bounds that it reaches."""


def square(left: int) -> str:
    """A mask of 20 x 20 pixels, as the list that a prediction holds."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[20:40, left : left + 20] = True
    return json.dumps([masks.encode(mask)])


def predictions(closed: float = 0.9, dice: float = 0.8, seed: int = 0, patients: int = PATIENTS) -> pd.DataFrame:
    """What evaluate keeps: of every ten items of a patient `closed` are right, all masks have the same Dice.

    Another `seed` is another test set.
    """
    rows: list[dict[str, Any]] = []
    for patient in range(patients):
        for number in range(ITEMS):
            right = float(number < round(ITEMS * closed))
            drawn = {
                "truth_rle": square(10),
                "answer_rle": square(14),
                "score": dice,
                "question": "Please segment the liver.",
                "truth": "<SEG>",
                "prediction": "It is here: <SEG>",
            }
            rows += [
                _row(seed, patient, number, "vqa_expert", "vqa", score=right),
                _row(seed, patient, number, "grounding_expert", "vqa", score=0.0),
                _row(seed, patient, number, "grounding_expert", "grounding", **drawn),
                _row(seed, patient, number, "grpo", "vqa", score=right),
                _row(seed, patient, number, "grpo", "grounding", **drawn),
            ]
    return pd.DataFrame(rows)


def _row(seed: int, patient: int, number: int, stage: str, task: str, **more: object) -> dict[str, object]:
    sample = f"slice_{seed}_{patient}_{number}"
    about = {"stage": stage, "task": task, "variant": "", "question_type": "presence", "answer_type": "CLOSED"}
    about |= {"modality": ("CT", "MR")[patient % 2], "dataset": "SetA", "case": f"SetA/case_{patient}", "sample_id": sample}
    said = {"conversation_id": f"{task}_{sample}", "question": "Is there a nodule?", "truth": "Yes", "prediction": "No"}
    drawn = {"truth_rle": "[]", "answer_rle": "[]", "region_rle": "[]", "height": SIDE, "width": SIDE}
    return {**about, **said, **drawn, "image_sha256": hashlib.sha256(sample.encode()).hexdigest(), **more}


def image(sample_id: str) -> Image.Image:
    """The image of a sample: a grey ramp."""
    ramp = np.tile(np.linspace(40, 200, SIDE, dtype=np.uint8), (SIDE, 1))
    return Image.fromarray(ramp).convert("RGB")


def write(report: Path, found: pd.DataFrame) -> None:
    """Write predictions and worst cases as evaluate does, in place of others."""
    shutil.rmtree(report / "worst", ignore_errors=True)
    found.to_parquet(report / "predictions.parquet", index=False)
    worst.write(report, found, image)
