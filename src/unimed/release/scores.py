"""The score of every held-out item under every row of the ladder, so that a later release can be compared on the same items."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa

from unimed.data import tables
from unimed.errors import InputError
from unimed.eval.rows import Rung, Scores, rungs

PREDICTIONS, SCORES = "predictions.parquet", "scores.parquet"

_ABOUT = ("stage", "task", "variant", "question_type", "modality")
_ITEM = ("image_sha256", "conversation_id", "question", "truth", "truth_rle")
"""What makes an item the same one in two evaluations: the image's bytes, what was asked about it, and what is right."""

_USED = {*_ABOUT, *_ITEM, "answer_type", "case", "prediction", "score"}
SCHEMA = pa.schema([(name, pa.string(), False) for name in ("row", *_ABOUT, "item", "patient")] + [("score", pa.float64(), False)])
"""`row` is "stage / metric"; `item` and `patient` are sha256, which keep names out of the registry, though not from who can guess them."""


def table(report: Path) -> pd.DataFrame:
    """The scores in an evaluation, by row and item; rows that are a share of another's score have none of their own.

    Raises InputError when the folder holds no predictions, or other ones.
    """
    path = report / PREDICTIONS
    try:
        predictions = pd.read_parquet(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: expected the predictions of evaluate, found {type(error).__name__}") from error
    if lacking := sorted(_USED - set(predictions.columns)):
        raise InputError(f"{path}: expected the predictions of evaluate, found no column {', '.join(lacking)}")
    found = [part for rung in rungs(Scores(predictions)) if rung.whole is None for part in _items(rung)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=SCHEMA.names)


def _items(rung: Rung) -> Iterator[pd.DataFrame]:
    items = rung.items
    if items.empty:
        return
    named = {"row": rung.name, "item": _hashed(items[list(_ITEM)]), "patient": _hashed(items[["case"]])}
    yield items[list(_ABOUT)].assign(**named, score=rung.values)[SCHEMA.names]


def _hashed(rows: pd.DataFrame) -> list[str]:
    return [hashlib.sha256(json.dumps(row).encode()).hexdigest() for row in rows.itertuples(index=False, name=None)]


def write(scores: pd.DataFrame, folder: Path) -> None:
    """Write scores.parquet; the same scores give the same bytes."""
    tables.write(scores, SCHEMA, folder / SCORES, by=("row", "item"))


def read(path: Path) -> pd.DataFrame:
    """The scores of a release. Raises InputError when the file holds others."""
    return tables.read(path, SCHEMA)
