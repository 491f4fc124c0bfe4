"""What an evaluation leaves behind: the ladder, the predictions, and one page for people."""

from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from unimed import hashes
from unimed.data.tables import Tables, write_json
from unimed.eval import ladder, report, worst
from unimed.eval.examination import Examination, Folders
from unimed.eval.rows import Scores, rungs
from unimed.model import artifacts

TRUSTED = 200
"""Items per task below which scores say little."""


def write(folder: Path, examination: Examination) -> str:
    """Write ladder.json, scored.json, predictions.parquet, report.html and the worst cases; returns the ladder as text."""
    folder.mkdir(parents=True)
    predictions = _with_images_named(examination.examine(), examination.folders)
    seed, samples = examination.seed, examination.settings.bootstrap_samples
    rows = [*examination.caption_rows(), *(rung.row(seed, samples) for rung in rungs(Scores(predictions)))]
    ladder.write(folder / "ladder.json", rows)
    write_json(folder / "scored.json", scored(examination.folders))
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    about, images = notes(Tables.read(examination.folders.data["vqa"]).samples, predictions), _images(examination)
    report.write(folder, rows, predictions, images, examination.curves(), examination.router_use, about)
    worst.write(folder, predictions, images)
    return ladder.table(rows)


def _with_images_named(predictions: pd.DataFrame, folders: Folders) -> pd.DataFrame:
    """The predictions with the sha256 of each image's bytes: two evaluations share an item only where they share its image."""
    known: dict[str, str] = {}
    for place in folders.data.values():
        samples = Tables.read(place).samples
        known |= dict(zip(samples["sample_id"], samples["sha256"], strict=True))
    return predictions.assign(image_sha256=predictions["sample_id"].map(known))


def scored(folders: Folders) -> dict[str, dict[str, str]]:
    """What the scores are about: the sha256 of each model's manifest, and the hash of each task's data as DVC writes it."""
    places: dict[str, Any] = {name: place for name, place in vars(folders).items() if name not in ("data", "shards")}
    models = {name: artifacts.sha256(place / artifacts.MANIFEST) for name, place in places.items()}
    return {"models": models, "data": {task: hashes.dvc_hash(place) for task, place in folders.data.items()}}


def _images(examination: Examination) -> Any:
    """A function from a sample's id to its image."""
    held_out = {sample.sample_id: sample for task in examination.folders.data for sample in examination.held_out(task)}

    def image(sample_id: str) -> Image.Image:
        return held_out[sample_id].load_image()

    return image


def notes(samples: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, Any]:
    """What the page says about the data: where it comes from, under which licences, and whether its scores mean anything."""
    datasets = sorted(set(samples["dataset"]))
    phantoms = all(name.startswith("Phantom") for name in datasets)
    licences = samples.groupby("dataset")["licence"].first().to_dict()
    split = samples.groupby("split")["sample_id"].count().to_dict()
    found: dict[str, Any] = {
        "data": {
            "source": "synthetic phantoms" if phantoms else ", ".join(datasets),
            **{f"images, {name}": int(n) for name, n in split.items()},
        },
        "licences": licences,
    }
    fewest = int(predictions.groupby(["stage", "task", "variant"]).size().min()) if len(predictions) else 0
    if not phantoms:
        found["warning"] = (
            "The numbers on this page mean nothing: the frozen towers have seen synthetic phantoms only, and these are other images."
        )
    elif fewest < TRUSTED:
        found["warning"] = f"The numbers on this page say little: the smallest task has {fewest} items, {TRUSTED} are needed."
    return found
