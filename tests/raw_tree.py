"""A download of seven small images, as a user would unpack it: what the data tests start from and break."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import s3
from PIL import Image

from unimed.config import Ingest, Split, Subset, Validate
from unimed.data import ingest, subset, tables
from unimed.errors import InputError

CLASSES = {"SetA": {"liver": 1, "kidney": 2}, "SetB": {"kidney": 1, "liver": 2}}
STEMS = (
    "ct_00--SetA--case_1--z_0001",
    "ct_00--SetA--case_1--z_0002",
    "mr_t1--SetA--case_2--x_0005",
    "ultrasound_00--SetA--case_3--2d_none",
    "ct_00--SetB--case_1--y_0003",
    "mr_t1--SetB--case_2--z_0007",
    "ultrasound_00--SetB--case_3--2d_none",
)
BARE = STEMS[-1]
"""The image without a mask."""

TOLERANT = Ingest(split=Split(train=0.5, val=0.25, test=0.25), max_bad_fraction=1, max_pixels=10_000, shard_size_mb=1, licences={})
BOUNDS = Validate(
    min_area_px=4,
    max_area_fraction=0.9,
    max_components=20,
    least_masks_of_class=0,
    least_images_of_modality=0,
    licences=None,
    max_bad_fraction=1,
)
ALL = Subset(train=None, val=None, test=None)
VQA, REGION, GROUNDING = (f"MeCoVQA/train/MeCoVQA-{name}.json" for name in ("Complex", "Region", "Grounding"))
CAPTIONS, CHOICES = "alignment/alignment.json", "reasoning/multiple_choice.json"
INDEX, MAPPING = "SAMed2Dv1/SAMed2D_v1.json", "SAMed2Dv1/SAMed2D_v1_class_mapping_id.json"


def size(stem: str) -> tuple[int, int]:
    """Height and width of an image."""
    number = STEMS.index(stem)
    return 20 + number, 30 - number


def mask(stem: str, name: str, instance: int) -> np.ndarray:
    """The true pixels of an instance."""
    height, width = size(stem)
    y, x = np.mgrid[:height, :width]
    top, left = (2, 3) if name == "liver" else (12, 4 + 10 * instance)
    return (abs(y - top - 2) <= 2) & (abs(x - left - 2) <= 2 + STEMS.index(stem) % 2)


def mask_path(stem: str, name: str, instance: int | None) -> str:
    """The path that annotations give a mask; without an instance the union of all of the class."""
    number = CLASSES[stem.split("--")[1]][name]
    return f"masks_merged/{stem}--{number:04d}_merged.png" if instance is None else f"masks/{stem}--{number:04d}_{instance:03d}.png"


def write(root: Path) -> Path:
    """Write the download under `root`."""
    base = root / "SAMed2Dv1"
    for folder in ("images", "masks"):
        (base / folder).mkdir(parents=True)
    index: dict[str, list[str]] = {}
    for number, stem in enumerate(STEMS):
        pixels = np.random.default_rng(number).integers(0, 256, (*size(stem), 3), dtype=np.uint8)
        Image.fromarray(pixels if number % 2 else pixels[..., 0]).save(base / "images" / f"{stem}.png")
        index[f"images/{stem}.png"] = [] if stem == BARE else [_write_mask(base, stem, *which) for which in instances()]
    _write(root / INDEX, index)
    _write(root / MAPPING, CLASSES)
    for file, make in {VQA: _vqa, REGION: _region, GROUNDING: _grounding, CAPTIONS: _caption, CHOICES: _choice}.items():
        _write(root / file, [record for stem in STEMS for record in make(stem)])
    return root


def instances() -> list[tuple[str, int]]:
    """What is on every image but the bare one."""
    return [("liver", 0), ("kidney", 0), ("kidney", 1)]


def _write_mask(base: Path, stem: str, name: str, instance: int) -> str:
    path = mask_path(stem, name, instance)
    foreground = 255 if "SetA" in stem else 1
    Image.fromarray(mask(stem, name, instance).astype(np.uint8) * foreground).save(base / path)
    return path


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


def edit(root: Path, file: str, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place: `change` alters the value it is given or returns another."""
    value = json.loads((root / file).read_text())
    changed = change(value)
    _write(root / file, value if changed is None else changed)


def said(stem: str, key: str, *texts: str, **more: str) -> dict[str, Any]:
    """A record of alternating human and gpt turns."""
    turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]
    return {"id": f"{stem}--{key}", "image": f"images/{stem}.png", "conversations": turns, **more}


def _vqa(stem: str) -> list[dict[str, Any]]:
    modality = stem.partition("_")[0]
    ending_left_out = said(stem, "m", f"<image>\nIs this a {modality} image?", "Yes", answer_type="CLOSED", question_type="modality")
    ending_left_out["image"] = f"images/{stem}"
    return [ending_left_out, said(stem, "d", "What is shown?\n<image>", "A slice.", "Of whom?", "Nobody.", answer_type="OPEN")]


def _region(stem: str) -> list[dict[str, Any]]:
    if stem == BARE:
        return []
    one, two, three = (f"<region>{mask_path(stem, *which)}</region>" for which in [*instances()[:2], ("kidney", None)])
    return [
        said(stem, "r1", f"<image>\nWhat lies in {one}?", "The liver.", f"And in {two}?", "A kidney."),
        said(stem, "r2", f"<image>\nWhat lies in {one} and {three}?", "The liver and both kidneys."),
    ]


def _grounding(stem: str) -> list[dict[str, Any]]:
    absent = said(stem, "g0", "<image>\nSegment the spleen.", "There is no spleen.", question_type="absent")
    if stem == BARE:
        return [absent]
    liver, kidneys, kidney = (mask_path(stem, name, which) for name, which in [("liver", None), ("kidney", None), ("kidney", 1)])
    return [
        absent,
        said(stem, "g1", "<image>\nSegment the liver.", f"<SEG><mask>{liver}</mask>"),
        said(stem, "g2", "<image>\nSegment the kidneys and the liver.", f"<SEG><mask>{kidneys}</mask> and <SEG><mask>{liver}</mask>"),
        said(stem, "g3", "<image>\nSegment the right kidney.", f"<SEG><mask>{kidney}</mask>"),
    ]


def _caption(stem: str) -> list[dict[str, Any]]:
    return [said(stem, "c", "<image>\nDescribe this image.", f"A {stem.partition('_')[0]} slice.")]


def _choice(stem: str) -> list[dict[str, Any]]:
    options, question = ["ct", "mr", "ultrasound"], "Which modality is this?"
    letter = "ABC"[options.index(stem.partition("_")[0])]
    problem = "\n".join([question, *(f"{key}) {option}" for key, option in zip("ABC", options, strict=True))])
    choice = {"question": question, "options": options, "answer": stem.partition("_")[0], "problem": problem, "solution": letter}
    return [{"image": [f"images/{stem}.png"], "rationale": "It looks like it.", **choice}]


def ingested(root: Path, out: Path, settings: Ingest = TOLERANT, seed: int = 0) -> Path:
    """Ingest `root` into `out`/shards and `out`/tables; gives `out`."""
    ingest.write(root, out / "shards", out / "tables", seed=seed, ingest=settings)
    return out


def refused(root: Path, out: Path, message: str) -> None:
    """Ingesting `root` ends with one sentence like `message`, without a secret, and leaves nothing."""
    with pytest.raises(InputError, match=message) as error:
        ingested(root, out)
    assert s3.SECRET not in str(error.value) and "\n" not in str(error.value)
    assert not (out / "tables").exists() and not (out / "shards").exists()


def chosen(out: Path, task: str) -> Path:
    """The subset of everything there is for a task; gives its folder."""
    subset.write(out / "tables", out / "subsets" / task, task=task, asked=ALL, seed=0)
    return out / "subsets" / task


def sound(folder: Path) -> Path:
    """Shards and the grounding subset of a sound download, in `folder`; gives it."""
    ingested(write(folder / "raw"), folder)
    chosen(folder, "grounding")
    return folder


def quarantine(out: Path) -> pd.DataFrame:
    """What ingest left out of the tables in `out`, with reasons."""
    return tables.read(out / "tables" / "quarantine.parquet", tables.QUARANTINE)
