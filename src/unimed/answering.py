"""Questions about images, answered: what `unimed predict`, a served model and MLflow's pyfunc have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from unimed.data import images, masks
from unimed.data.records import REGION
from unimed.errors import InputError
from unimed.eval import answers, predict
from unimed.eval.decoding import Decoding, Row
from unimed.model.assemble import Assembled
from unimed.model.processor import Picture
from unimed.model.router_use import RouterUse
from unimed.rl.prompts import THINK

MAX_NEW_TOKENS = 256
MAX_PIXELS = 2**26
"""Of an image that people ask about."""

_OPENING, _CLOSING = "<think>", "</think>"


@dataclass(frozen=True)
class Question:
    """What to ask about an RGB image; each region is a mask of its size, and `<region>` in the text stands for one.

    Regions that the text does not name are added at its end. With `think` it asks for reasoning first, as reasoners have learned to give.
    """

    image: Image.Image
    text: str
    regions: tuple[masks.Pixels, ...] = ()
    think: bool = False


@dataclass(frozen=True)
class Reply:
    """An answer, with a mask per `<SEG>` as COCO RLE with its size; `router` holds the share of each expert in each layer."""

    answer: str
    reasoning: str
    masks: tuple[dict[str, Any], ...]
    router: tuple[dict[str, Any], ...]


def answer(made: Assembled, questions: Sequence[Question], max_new_tokens: int) -> list[Reply]:
    """A reply to each question, all answered in one batch; each is the reply that the question would get alone."""
    rows = [read(made, question, max_new_tokens) for question in questions]
    decoding = Decoding(made, max_new_tokens)
    decoding.advance(rows)
    while decoding.rows:
        decoding.advance([])
    return [reply(made, row) for row in rows]


def read(made: Assembled, question: Question, max_new_tokens: int) -> Row:
    """A question as the model reads it, its image in the model's own size. Raises InputError for one that cannot be asked."""
    _check(made, question)
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _text(question)}]}]
    text = made.processor.apply_chat_template(said, add_generation_prompt=True)
    inputs = dict(made.processor(images=[Picture(question.image, question.regions)], text=[text], return_tensors="pt"))
    language: Any = made.model.config.text_config
    length, room = inputs["input_ids"].shape[1], language.max_position_embeddings - max_new_tokens
    if length > room:
        raise InputError(f"question: expected at most {room} tokens with its image, found {length}; ask in fewer words")
    return Row(said, inputs, RouterUse(tuple(made.model.config.experts)))


def _check(made: Assembled, question: Question) -> None:
    """That a text holds no more regions than are given, and nothing that the tokenizer takes for more than text."""
    if (named := question.text.count(REGION)) > len(question.regions):
        raise InputError(f"question: expected at most one {REGION} for each of {len(question.regions)} regions, found {named}")
    tokenizer = made.processor.tokenizer
    special = {number: token for token, number in tokenizer.get_added_vocab().items() if token != REGION}
    # Asked of the tokenizer, because it may take other spellings for the same token.
    forged = [special[number] for number in tokenizer(question.text, add_special_tokens=False)["input_ids"] if number in special]
    if forged:
        raise InputError(f"question: expected plain text, found {forged[0]}, which the model takes for a sign; leave it out")


def _text(question: Question) -> str:
    missing = len(question.regions) - question.text.count(REGION)
    return question.text + f" {REGION}" * missing + (f"\n{THINK}" if question.think else "")


def reply(made: Assembled, row: Row) -> Reply:
    """An answer that has ended, taken apart; its masks grow to the size of its image."""
    text = made.processor.tokenizer.decode(row.ids).split(made.processor.tokenizer.eos_token)[0]
    thought = answers.split_thought(text)
    [size] = row.inputs["image_sizes"]
    drawn = tuple({"size": size.tolist(), "counts": rle} for rle in predict.rles(made.processor, row.mask_logits, size))
    router = tuple({"layer": layer, "expert": name, "share": share} for layer, name, share in row.use.shares())
    return Reply(thought.answer if thought.well_formed else text, thought.thought if thought.well_formed else "", drawn, router)


def thought_so_far(text: str) -> str:
    """The reasoning in an answer that is still being written: what it grows by is never taken back.

    Of an answer that ends well formed it ends as the whole reasoning.
    """
    opening, _, body = text.partition(_OPENING)
    if opening.strip():
        return ""
    thought, closed, _ = body.partition(_CLOSING)
    if not closed:
        # What may yet turn out to be the closing tag, half a character, or space at the end.
        ends = [size for size in range(1, len(_CLOSING)) if thought.endswith(_CLOSING[:size])]
        thought = thought[: len(thought) - max(ends, default=0)].rstrip("\ufffd")
    return thought.strip()


def picture(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A PNG or JPEG as 8-bit RGB, pixel for pixel. Raises InputError for anything else, and for pixels that are to be shown turned.

    Boxes and masks speak of pixels, and could be meant either way round.
    """
    return upright(images.decode(content, name, max_pixels), name)


def upright(image: Image.Image, name: str) -> Image.Image:
    """An image as 8-bit RGB. Raises InputError for one that is broken, and for pixels that are to be shown turned."""
    turned = images.whole(image, name).getexif().get(ExifTags.Base.Orientation, 1)
    if turned != 1:
        raise InputError(f"{name}: expected pixels stored upright, found EXIF orientation {turned}; turn them and drop the tag")
    return images.rgb(image)


def region(text: str, image: Image.Image) -> masks.Pixels:
    """A region given as `box:x,y,w,h` or `point:x,y` in pixels, as a mask of the image's size. Raises InputError otherwise."""
    kind, _, numbers = text.partition(":")
    parts = numbers.split(",")
    if kind not in ("box", "point") or len(parts) != {"box": 4, "point": 2}[kind] or not all(map(_is_number, parts)):
        raise InputError(f"region {text[:40]}: expected box:x,y,w,h or point:x,y in whole pixels")
    x, y, width, height = ([int(part) for part in parts] + [1, 1])[:4]
    if not (x + width <= image.width and y + height <= image.height and width and height):
        raise InputError(f"region {text}: expected a region within {image.width} x {image.height} pixels")
    mask = np.zeros((image.height, image.width), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def _is_number(text: str) -> bool:
    """Whether a text is a number of pixels; other digits than these, such as ², pass `isdigit`, and long ones are no pixels."""
    return text.strip().isascii() and text.strip().isdigit() and len(text.strip()) < 10
