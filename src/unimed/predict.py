"""One question about one image, for people: the answer, the reasoning, and masks as files."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimed.data import images, masks
from unimed.errors import InputError
from unimed.eval import answers, overlays
from unimed.eval import predict as predictions
from unimed.model import artifacts, assemble, experts
from unimed.model.processor import REGION, Picture
from unimed.rl.prompts import THINK

MAX_PIXELS = 2**26
MAX_NEW_TOKENS = 256


def predict(model: Path, image: Path, question: str, regions: list[str], out: Path | None, think: bool = False) -> dict[str, Any]:
    """Answer, reasoning, masks as COCO RLE and the router's use of the experts; files written are named under `files`.

    With `think` the question asks for reasoning first, as a reasoner has learned to give it. Raises InputError for a model folder, an
    image or a region that cannot be used.
    """
    made = load(model)
    shown = open_image(image)
    picture = Picture(shown, tuple(region(text, shown) for text in regions))
    missing = len(regions) - question.count(REGION)
    asked = question + "".join(f" {REGION}" for _ in range(missing)) + (f"\n{THINK}" if think else "")
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}]
    with experts.watched(made.model) as seen:
        found = predictions.answer(made, [said], [picture], MAX_NEW_TOKENS)[0]
    thought = answers.split_thought(found.text)
    drawn = [masks.decode(rle, shown.height, shown.width) for rle in found.rles]
    return {
        "answer": thought.answer if thought.well_formed else found.text,
        "reasoning": thought.thought if thought.well_formed else "",
        "masks": [{"size": [shown.height, shown.width], "counts": rle} for rle in found.rles],
        "router": [{"layer": layer, "expert": name, "share": share} for layer, name, share in seen.shares()],
        "files": [str(file) for file in _write(out, shown, drawn)] if out else [],
    }


def load(model: Path) -> assemble.Assembled:
    """The model of a stage's folder, its parts found beside it and verified by hash."""
    manifest = artifacts.verify(model)
    parents = manifest["parents"]
    if "router" in parents:
        return assemble.with_reasoner(model)
    if "vqa" in parents and "grounding" in parents:
        return assemble.with_router(model)
    if "aligned" in parents:
        name = "grounding" if artifacts.WEIGHTS in manifest["files"] else "vqa"
        return assemble.expert(artifacts.parent(model, "foundation"), artifacts.parent(model, "aligned"), model, name)
    raise InputError(f"{model}: expected the folder of an expert, a router or a reasoner, found parents {sorted(parents)}")


def open_image(path: Path) -> Image.Image:
    """A PNG or JPEG file as 8-bit RGB. Raises InputError for a missing file or one that is no image."""
    if not path.is_file():
        raise InputError(f"{path}: expected an image file, found none")
    return images.rgb(images.decode(path.read_bytes(), str(path), MAX_PIXELS))


def region(text: str, image: Image.Image) -> masks.Pixels:
    """A region given as `box:x,y,w,h` or `point:x,y` in pixels, as a mask of the image's size. Raises InputError otherwise."""
    kind, _, numbers = text.partition(":")
    parts = numbers.split(",")
    if kind not in ("box", "point") or len(parts) != {"box": 4, "point": 2}[kind] or not all(part.strip().isdigit() for part in parts):
        raise InputError(f"--region {text}: expected box:x,y,w,h or point:x,y in whole pixels")
    x, y, width, height = ([int(part) for part in parts] + [1, 1])[:4]
    if not (x + width <= image.width and y + height <= image.height and width and height):
        raise InputError(f"--region {text}: expected a region within {image.width} x {image.height} pixels")
    mask = np.zeros((image.height, image.width), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def _write(out: Path, image: Image.Image, drawn: list[masks.Pixels]) -> list[Path]:
    """Each mask as a PNG of 0 and 255, and the image with all of them outlined."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for number, mask in enumerate(drawn):
        files.append(out / f"mask_{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(files[-1])
    if drawn:
        files.append(out / "overlay.png")
        overlays.outlined(image, np.logical_or.reduce(drawn), overlays.PREDICTION).save(files[-1])
    return files
