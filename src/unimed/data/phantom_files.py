"""Phantoms as files: the layout of a real download of SA-Med2D-20M, MeCoVQA, captions and multiple choice."""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimed.data import phantom_text as text
from unimed.data import phantoms
from unimed.data.phantoms import CLASSES, LESION, ORGANS, Scene

CLASS_IDS = {
    "PhantomA": {name: number for number, name in enumerate(CLASSES, 1)},
    "PhantomB": {name: number for number, name in enumerate(reversed(CLASSES), 1)},
}
Record = dict[str, Any]


def write(root: Path, cases: int, slices: int, seed: int) -> None:
    """Write `cases` patients with `slices` slices each under `root`; the same arguments give the same bytes.

    What was under `root` is replaced in one step: an interrupted run leaves the old tree or none.
    """
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    base = partial / "SAMed2Dv1"
    for folder in ("images", "masks"):
        (base / folder).mkdir(parents=True)
    index: dict[str, list[str]] = {}
    records: dict[str, list[Record]] = defaultdict(list)
    for scene in phantoms.scenes(cases, slices, seed):
        index[f"images/{scene.stem}.png"] = _write_pixels(base, scene)
        rng = np.random.default_rng([seed, int(scene.case.removeprefix("case_")), scene.position, 1])
        for file, record in _records(scene, rng):
            records[file].append(record)
    _write_json(base / "SAMed2D_v1.json", index)
    _write_json(base / "SAMed2D_v1_class_mapping_id.json", CLASS_IDS)
    for file, rows in records.items():
        _write_json(partial / file, rows)
    provenance = {"generator": "unimed data phantoms", "cases": cases, "slices": slices, "seed": seed}
    _write_json(partial / "provenance.json", {**provenance, "licences": dict.fromkeys(CLASS_IDS, "CC0-1.0")})
    shutil.rmtree(root, ignore_errors=True)
    partial.rename(root)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def _mask_name(scene: Scene, name: str, instance: int) -> str:
    return f"masks/{scene.stem}--{CLASS_IDS[scene.dataset][name]:04d}_{instance:03d}.png"


def _pointed(scene: Scene, name: str) -> str:
    mask = f"masks_merged/{scene.stem}--{CLASS_IDS[scene.dataset][name]:04d}_merged.png"
    return f"<SEG><mask>{mask}</mask>"


def _write_pixels(base: Path, scene: Scene) -> list[str]:
    """The image (grey in one data set, RGB in the other) and its masks ({0, 255} in one, {0, 1} in the other)."""
    image = Image.fromarray(scene.image)
    (image if scene.dataset == "PhantomA" else image.convert("RGB")).save(base / "images" / f"{scene.stem}.png", compress_level=1)
    names = []
    for name in CLASSES:
        for instance, structure in enumerate(scene.named(name)):
            names.append(_mask_name(scene, name, instance))
            foreground = 255 if scene.dataset == "PhantomA" else 1
            Image.fromarray(structure.mask.astype(np.uint8) * foreground).save(base / names[-1], compress_level=1)
    return names


def _records(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, Record]]:
    """Every annotation of a scene with the file it belongs to."""
    yield "alignment/alignment.json", _turn(scene, "c", "Describe this image briefly.", text.caption(scene), "caption")
    for number, (kind, question, answer) in enumerate(text.closed_questions(scene, rng)):
        record = _turn(scene, f"v{number}", question, answer, kind)
        yield "MeCoVQA/train/MeCoVQA-Complex.json", {**record, "answer_type": "CLOSED"}
    for number, (question, answer) in enumerate(_region_questions(scene, rng)):
        yield "MeCoVQA/train/MeCoVQA-Region.json", _turn(scene, f"r{number}", question, answer, "region")
    for number, (kind, question, answer) in enumerate(_grounding_questions(scene, rng)):
        yield "MeCoVQA/train/MeCoVQA-Grounding.json", _turn(scene, f"g{number}", question, answer, kind)
    for item in text.reasoning_items(scene, rng):
        item |= {"image": [f"images/{scene.stem}.png"], "dataset": scene.dataset, "subset": scene.modality}
        yield "reasoning/multiple_choice.json", item


def _turn(scene: Scene, suffix: str, question: str, answer: str, kind: str) -> Record:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    image = f"images/{scene.stem}.png"
    return {"id": f"{scene.stem}--{suffix}", "image": image, "question_type": kind, "conversations": turns}


def _region_questions(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Up to two questions about marked instances: one region, and two regions in one turn."""
    marked = [(name, i) for name in CLASSES for i in range(len(scene.named(name)))]
    rng.shuffle(marked)
    tags = [f"<region>{_mask_name(scene, str(name), int(i))}</region>" for name, i in marked]
    if marked:
        yield f"Which structure lies in {tags[0]}?", f"The marked region shows the {marked[0][0]}."
    if len(marked) > 2:
        answer = f"The marked regions show the {marked[1][0]} and the {marked[2][0]}."
        yield f"Which structures lie in {tags[1]} and {tags[2]}?", answer


def _grounding_questions(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, str]]:
    """Two targets that are there, one that is not, and two in one answer."""
    present = [name for name in CLASSES if scene.named(name)]
    rng.shuffle(present)
    for name in present[:2]:
        yield "target", f"Please segment the {name} in this image.", f"The {name} is {_pointed(scene, name)}."
    if absent := [name for name in (*ORGANS, LESION) if not scene.named(name)]:
        name = str(rng.choice(absent))
        yield "absent", f"Please segment the {name} in this image.", f"There is no {name} in this image."
    if len(present) > 2:
        first, second = present[0], present[2]
        answer = f"The {first} is {_pointed(scene, first)} and the {second} is {_pointed(scene, second)}."
        yield "targets", f"Please segment the {first} and the {second} in this image.", answer
