"""One annotation record as it was downloaded, taken apart: clean text here, paths of images and masks there.

MeCoVQA marks a region as `<region>path</region>` in a question and a target as `<SEG><mask>path</mask>` in an answer; LLaVA-Med's
captions are the same without marks; multiple choice has its own keys (MedVLM-R1's, or OmniMedVQA's).
"""

import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from unimed.data import names, origins
from unimed.data.origins import UNSAID, Origin
from unimed.errors import InputError

SEG = "<SEG>"
REGION = "<region>"
ANSWER_TYPES = ("", "CLOSED", "OPEN")
MOST_CHARACTERS = 2**16
"""Characters of one text of a record: far above any answer, far below what would fill a table."""

_TURNS = ("conversations", "conversatons")
"""The key of the turns, and how LLaVA-Med's file of captions spells it."""

_REGION = re.compile(r"<region>\s*([^<>]*?)\s*</region>")
_TARGET = re.compile(r"<mask>\s*([^<>]*?)\s*</mask>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LETTER = re.compile(r"(?:<answer>)?\s*([A-Z])\s*(?:</answer>)?")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer, with the mask path of each `<region>` and each `<SEG>` in order."""

    question: str
    answer: str
    regions: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation about one image; `file` and `where` (file and position) are for messages, `origin` for images of other names."""

    conversation_id: str
    image: str
    task: str
    source: str
    file: str
    where: str
    exchanges: tuple[Exchange, ...] = ()
    question_type: str = "other"
    answer_type: str = ""
    options: tuple[str, ...] = ()
    solution: str = ""
    rationale: str = ""
    origin: Origin = UNSAID


def parse(raw: Any, task: str, file: str, position: int) -> Record:
    """The record of a JSON object. Raises InputError with file and position for anything that is missing, empty or does not fit.

    A record without an id gets one from its image, its file and its position.
    """
    where = f"{file}, record {position}"
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected an object, found {_kind(raw)}")
    raw = _omnimed(raw) if "gt_answer" in raw else raw
    check_texts(raw, where)
    image = names.with_ending(_image(raw, where))
    record = Record(
        conversation_id=_text(raw, "id", where) if "id" in raw else f"{names.stem(image)}--{names.stem(file)}--{position}",
        image=image,
        task=task,
        source=file.rpartition("/")[2],
        file=file,
        where=where,
        question_type=_text(raw, "question_type", where, absent="other"),
        answer_type=_answer_type(raw, where),
        origin=origins.said(raw),
    )
    return _multiple_choice(raw, record) if task == "reasoning" else replace(record, exchanges=_exchanges(raw, where))


def as_text(record: Record) -> str:
    """The record as JSON, for a table of records."""
    return json.dumps(record, default=_fields, ensure_ascii=False)


def _fields(part: Record | Exchange) -> dict[str, Any]:
    """What `asdict` gives of one level; it would copy every text below it."""
    return {field.name: getattr(part, field.name) for field in fields(part)}


def from_text(text: str) -> Record:
    """The record that `as_text` made a text of."""
    said = json.loads(text)
    exchanges = tuple(
        Exchange(exchange["question"], exchange["answer"], tuple(exchange["regions"]), tuple(exchange["targets"]))
        for exchange in said["exchanges"]
    )
    parts: dict[str, Any] = {"exchanges": exchanges, "options": tuple(said["options"]), "origin": Origin(**said["origin"])}
    return Record(**{**said, **parts})


def _omnimed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A question of OmniMedVQA under the keys that MedVLM-R1 uses. Hu et al. 2024, arXiv:2402.09181."""
    options = [raw[key] for letter in string.ascii_uppercase if (key := f"option_{letter}") in raw]
    renamed = {"id": raw.get("question_id"), "image": raw.get("image_path"), "answer": raw["gt_answer"], "options": options}
    kept = {key: raw[key] for key in ("question", "question_type", "dataset", "modality_type") if key in raw}
    return kept | {key: value for key, value in renamed.items() if value is not None}


def check_texts(raw: Any, where: str) -> None:
    """Raise InputError when a text anywhere in a value of JSON is longer than any should be or holds half a character."""
    waiting = [raw]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if len(value) > MOST_CHARACTERS:
                raise InputError(f"{where}: expected texts of at most {MOST_CHARACTERS} characters, found one of {len(value)}")
            if not value.isascii() and (half := _SURROGATE.search(value)):
                raise InputError(f"{where}: expected whole characters, found half of one (U+{ord(half[0]):04X})")
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value


def _image(raw: Mapping[str, Any], where: str) -> str:
    image = raw.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if not isinstance(image, str) or not image:
        raise InputError(f"{where}: expected one image path under 'image', found {_kind(raw.get('image'))}")
    return image


def _text(raw: Mapping[str, Any], key: str, where: str, absent: str | None = None) -> str:
    value = raw.get(key, absent)
    if key == "id" and isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        found = "an empty one" if isinstance(value, str) else _kind(value)
        raise InputError(f"{where}: expected a text under {key!r}, found {found}")
    return value.strip()


def _answer_type(raw: Mapping[str, Any], where: str) -> str:
    kind = raw.get("answer_type") or ""
    if kind not in ANSWER_TYPES:
        raise InputError(f"{where}: expected 'answer_type' OPEN or CLOSED, found {kind!r}")
    return kind


def _exchanges(raw: Mapping[str, Any], where: str) -> tuple[Exchange, ...]:
    turns = next((raw[key] for key in _TURNS if key in raw), None)
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        found = f"{len(turns)} turns" if isinstance(turns, list) else _kind(turns)
        raise InputError(f"{where}: expected 'conversations' with pairs of human and gpt turns, found {found}")
    return tuple(
        _exchange(_said(human, "human", where), _said(gpt, "gpt", where), where) for human, gpt in zip(turns[::2], turns[1::2], strict=True)
    )


def _said(turn: Any, speaker: str, where: str) -> str:
    if not isinstance(turn, dict) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
        found = f"one from {turn.get('from')!r}" if isinstance(turn, dict) else _kind(turn)
        raise InputError(f"{where}: expected a turn with 'from' {speaker!r} and a text under 'value', found {found}")
    return turn["value"]


def _exchange(human: str, gpt: str, where: str) -> Exchange:
    regions, targets = tuple(_REGION.findall(human)), tuple(_TARGET.findall(gpt))
    if human.count(REGION) != len(regions):
        raise InputError(f"{where}: expected a mask path in every <region>, found {human.count(REGION)} marks and {len(regions)} paths")
    if gpt.count(SEG) != len(targets):
        raise InputError(f"{where}: expected one <SEG> for each <mask> of the answer, found {gpt.count(SEG)} and {len(targets)}")
    question = _REGION.sub(REGION, human).replace("<image>", "").strip()
    answer = _TARGET.sub("", gpt).strip()
    for text, name in ((question, "a question"), (answer, "an answer")):
        if not text:
            raise InputError(f"{where}: expected {name}, found an empty one")
    return Exchange(question=question, answer=answer, regions=regions, targets=targets)


def _multiple_choice(raw: Mapping[str, Any], record: Record) -> Record:
    where = record.where
    options = raw.get("options")
    texts = options if isinstance(options, list) and all(isinstance(option, str) and option.strip() for option in options) else []
    if not 2 <= len(texts) <= len(string.ascii_uppercase) or len(set(texts)) != len(texts):
        raise InputError(f"{where}: expected 2 to 26 different texts under 'options', found {options!r:.120}")
    solution = _solution(raw, texts, where)
    exchange = Exchange(question=lettered(_text(raw, "question", where), texts), answer=solution)
    rationale = _text(raw, "rationale", where) if "rationale" in raw else ""
    return replace(record, exchanges=(exchange,), options=tuple(texts), solution=solution, rationale=rationale)


def _solution(raw: Mapping[str, Any], options: list[str], where: str) -> str:
    """The letter of the right option, from 'solution', 'answer' or both if they agree."""
    letters = dict(zip(string.ascii_uppercase, options, strict=False))
    answer = raw.get("answer")
    given = _LETTER.fullmatch(_text(raw, "solution", where)) if "solution" in raw else None
    letter = given[1] if given else next((letter for letter, option in letters.items() if option == answer), None)
    if letter not in letters or ("solution" in raw and given is None):
        raise InputError(f"{where}: expected a solution among {', '.join(letters)}, found {raw.get('solution', answer)!r}")
    if "answer" in raw and letters[letter] != answer:
        raise InputError(f"{where}: expected solution {letter} to be the answer {answer!r}, found option {letters[letter]!r}")
    return letter


def lettered(question: str, options: list[str]) -> str:
    """The question with its options below it, one a line, as `A) ...`."""
    return "\n".join([question, *(f"{letter}) {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))])


def _kind(value: Any) -> str:
    return "none" if value is None else f"{type(value).__name__} {value!r:.80}"
