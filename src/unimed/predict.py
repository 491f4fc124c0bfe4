"""One question about one image, for people: the answer, the reasoning, and masks as files."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unimed import answering
from unimed.data import masks
from unimed.errors import InputError
from unimed.eval import overlays
from unimed.model import artifacts, assemble


def predict(model: Path, image: Path, question: str, regions: list[str], out: Path | None, think: bool = False) -> dict[str, Any]:
    """Answer, reasoning, masks as COCO RLE and the router's use of the experts; files written are named under `files`.

    With `think` the question asks for reasoning first, as a reasoner has learned to give it. Raises InputError for a model folder, an
    image or a region that cannot be used.
    """
    made, shown = load(model), open_image(image)
    asked = answering.Question(shown, question, tuple(answering.region(text, shown) for text in regions), think)
    [reply] = answering.answer(made, [asked], answering.MAX_NEW_TOKENS)
    drawn = [masks.decode(mask["counts"], shown.height, shown.width) for mask in reply.masks]
    return {**asdict(reply), "files": [str(file) for file in _write(out, shown, drawn)] if out else []}


def load(model: Path) -> assemble.Assembled:
    """The model of a stage's folder, its parts found beside it and verified by hash, on the GPU if there is one."""
    return assemble.placed(_put_together(model))


def _put_together(model: Path) -> assemble.Assembled:
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
    return answering.picture(path.read_bytes(), str(path))


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
