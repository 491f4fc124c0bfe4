"""Questions about images, answered: what `unimed predict`, a served model and MLflow's pyfunc have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from unimed.data import masks
from unimed.errors import InputError
from unimed.eval import answers, predict
from unimed.model import experts
from unimed.model.assemble import Assembled
from unimed.model.processor import REGION, Picture
from unimed.rl.prompts import THINK

MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Question:
    """What to ask about an RGB image; each region is a mask of its size, and `<region>` in the text stands for one.

    Regions that the text does not name are added at its end. With `think` it asks for reasons first, which reasoners have learned to give.
    """

    image: Image.Image
    text: str
    regions: tuple[masks.Pixels, ...] = ()
    think: bool = False


@dataclass(frozen=True)
class Reply:
    """An answer, with a mask per `<SEG>` as COCO RLE with its size.

    `router` holds the share of each expert in each layer, over the whole batch.
    """

    answer: str
    reasoning: str
    masks: tuple[dict[str, Any], ...]
    router: tuple[dict[str, Any], ...]


def answer(made: Assembled, questions: Sequence[Question], max_new_tokens: int) -> list[Reply]:
    """A reply to each question, all answered in one batch."""
    asked = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _text(question)}]}] for question in questions]
    with experts.watched(made.model) as seen:
        found = predict.answer(made, asked, [Picture(question.image, question.regions) for question in questions], max_new_tokens)
    router = tuple({"layer": layer, "expert": name, "share": share} for layer, name, share in seen.shares())
    return [_reply(question, said, router) for question, said in zip(questions, found, strict=True)]


def _text(question: Question) -> str:
    missing = len(question.regions) - question.text.count(REGION)
    return question.text + f" {REGION}" * missing + (f"\n{THINK}" if question.think else "")


def _reply(question: Question, said: predict.Answer, router: tuple[dict[str, Any], ...]) -> Reply:
    thought = answers.split_thought(said.text)
    size = [question.image.height, question.image.width]
    drawn = tuple({"size": size, "counts": rle} for rle in said.rles)
    return Reply(thought.answer if thought.well_formed else said.text, thought.thought if thought.well_formed else "", drawn, router)


def region(text: str, image: Image.Image) -> masks.Pixels:
    """A region given as `box:x,y,w,h` or `point:x,y` in pixels, as a mask of the image's size. Raises InputError otherwise."""
    kind, _, numbers = text.partition(":")
    parts = numbers.split(",")
    if kind not in ("box", "point") or len(parts) != {"box": 4, "point": 2}[kind] or not all(part.strip().isdigit() for part in parts):
        raise InputError(f"region {text}: expected box:x,y,w,h or point:x,y in whole pixels")
    x, y, width, height = ([int(part) for part in parts] + [1, 1])[:4]
    if not (x + width <= image.width and y + height <= image.height and width and height):
        raise InputError(f"region {text}: expected a region within {image.width} x {image.height} pixels")
    mask = np.zeros((image.height, image.width), bool)
    mask[y : y + height, x : x + width] = True
    return mask
