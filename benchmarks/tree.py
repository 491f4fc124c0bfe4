"""A download of any size in the layout of SA-Med2D-20M: smooth grey images with a little noise, and four masks on each."""

import json
from collections.abc import Iterable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimed.data import pool
from unimed.data.raw import ANNOTATIONS, INDEX, MAPPING, PIXELS

CLASSES = ("liver", "kidney", "spleen", "vessel")
SLICES = 10
"""Images of a case."""

MODALITIES = ("ct_00", "mr_t1", "ultrasound_00")


def stem(number: int) -> str:
    """The name of an image, without ending."""
    case = number // SLICES
    return f"{MODALITIES[case % len(MODALITIES)]}--Set{case % 4}--case_{case:06d}--z_{number % SLICES:04d}"


def masks(number: int) -> list[str]:
    """The paths of an image's masks, as the index has them."""
    return [f"masks/{stem(number)}--{class_id:04d}_000.png" for class_id in range(1, len(CLASSES) + 1)]


def write(root: Path, count: int, smallest: int, largest: int) -> Path:
    """Write `count` images with sides from `smallest` to `largest` pixels under `root`; gives `root`."""
    for folder in ("images", "masks"):
        (root / PIXELS / folder).mkdir(parents=True)
    for _ in pool.ordered(partial(_write_pixels, root / PIXELS, smallest, largest), range(count)):
        pass
    return annotate(root, count)


def annotate(root: Path, count: int) -> Path:
    """Write the index, the classes and what is said about the first `count` images of a tree; gives `root`."""
    (root / INDEX).write_text(json.dumps({f"images/{stem(number)}.png": masks(number) for number in range(count)}))
    (root / MAPPING).write_text(json.dumps({f"Set{number}": {name: at for at, name in enumerate(CLASSES, 1)} for number in range(4)}))
    write_said(root, range(count))
    return root


def write_said(root: Path, numbers: Iterable[int]) -> None:
    """Write the files with annotations, about the images with these numbers."""
    told = (item for turn, number in enumerate(numbers) for item in _records(number, turn))
    said = sorted(told, key=lambda item: item[0])
    for task, rows in groupby(said, key=lambda item: item[0]):
        pattern = next(annotations.pattern for annotations in ANNOTATIONS if annotations.task == task)
        file = root / pattern.replace("*", "all")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([record for _, record in rows]))


def _write_pixels(base: Path, smallest: int, largest: int, number: int) -> None:
    draw = np.random.default_rng(number)
    height, width = (int(side) for side in draw.integers(smallest, largest, 2, endpoint=True))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = sum(np.sin(y * a + x * b + c) for a, b, c in draw.uniform([-0.02, -0.02, 0], [0.02, 0.02, 6.3], (3, 3)).astype(np.float32))
    pixels = (127 + 30 * waves + draw.integers(0, 8, (height, width))).astype(np.uint8)
    Image.fromarray(pixels).save(base / "images" / f"{stem(number)}.png", compress_level=1)
    for path in masks(number):
        centre_y, centre_x, radius = draw.uniform(0.3, 0.7, 3) * (height, width, 0.4 * min(height, width))
        covered = (y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2
        Image.fromarray(covered.astype(np.uint8) * 255).save(base / path, compress_level=1)


def _records(number: int, turn: int) -> list[tuple[str, dict[str, Any]]]:
    """What is said about an image: a question about it, and one of the other tasks, whose turn it is."""
    image, (first, second, *_) = f"images/{stem(number)}.png", masks(number)
    target = second.replace("masks/", "masks_merged/").replace("_000.png", "_merged.png")
    choice = {
        "question": "What is this?",
        "options": ["a slice", "a whole"],
        "solution": "A",
        "image": [image],
        "id": f"{number} reasoning",
    }
    others = {
        "alignment": _said(number, image, "alignment", "Describe this image.", "A slice."),
        "region": _said(number, image, "region", f"What lies in <region>{first}</region>?", "The liver."),
        "grounding": _said(number, image, "grounding", "Segment the kidney.", f"<SEG><mask>{target}</mask>"),
        "reasoning": choice,
    }
    task = tuple(others)[turn % len(others)]
    return [("vqa", _said(number, image, "vqa", "Is there a liver?", "Yes")), (task, others[task])]


def _said(number: int, image: str, task: str, question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": f"{number} {task}", "image": image, "conversations": turns}
