"""What a text says of an image and its masks, as far as words alone are sure: classes, sides, modalities and boxes that it names.

Where a text could be meant otherwise, nothing is found: an alarm about good data costs more than a fault that is missed.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

_TEXTS = 2**14
"""Texts whose meaning is remembered: most are templates with a class filled in, and come again."""

SIDES = {"left": "right", "right": "left"}
_TOKEN = re.compile(r"[a-z0-9]+|[^\sa-z0-9_-]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LOCATIVE = _words(
    "above along around at behind below beneath beside besides between beyond by close from in inside into near no of off on over than "
    "through to toward towards under underneath unlike with within without"
)
"""Words after which a class says where something is, not what."""

_WHOLES = _words("area boundary contour delineation extent location mask outline pixel region segment segmentation shape")
"""Words after which `of` says what something is: the mask of the liver."""

_TURNING = _words("not except excluding other rather instead neither nor no cannot isn doesn aren beside besides adjacent next versus vs")
"""Words that turn round what a text says of the classes it names."""

_ARTICLES = _words("a an the this that these those all any both each its their")

_MODALITY = {
    "ct": r"(?:cta?|computed tomograph(?:y|ic))",
    "mr": r"(?:mri?|magnetic[ -]resonance(?: imaging)?)",
    "ultrasound": r"(?:ultrasound|ultrasonograph(?:y|ic)|sonograph(?:y|ic))",
    "x_ray": r"(?:x-?ray|radiograph(?:y|ic)?)",
    "pet": r"(?:pet|positron[ -]emission(?: tomography)?)",
    "dermoscopy": r"(?:dermato|dermo)scop(?:y|ic)",
    "endoscopy": r"(?:endoscop(?:y|ic)|colonoscop(?:y|ic)|gastroscop(?:y|ic))",
    "fundus": r"(?:colou?r )?fundus",
    "oct": r"(?:oct|optical coherence tomograph(?:y|ic))",
    "microscopy": r"(?:microscop(?:y|ic)|histo(?:patho)?log(?:y|ic|ical))",
}
_ANY_MODALITY = re.compile(rf"\b(?:{'|'.join(_MODALITY.values())})\b")
_NOUN = r"(?:image|scan|slice|photo(?:graph)?|picture|view|frame)s?"
_VIEW = r"(?:(?:axial|coronal|sagittal|transverse|abdominal|chest|brain|cardiac|grey-?scale|2d|contrast-enhanced|medical) )*"
_STATED = {
    name: re.compile(rf"\b(?:this|the given|the present|is an?|shows an?|^an?) {_VIEW}{word} {_NOUN}\b") for name, word in _MODALITY.items()
}
_ASKED = {name: re.compile(rf"^(?:is|was) (?:this|it|the image) an? {_VIEW}{word}(?: {_NOUN})?\?$") for name, word in _MODALITY.items()}
_BARE = {name: re.compile(rf"{word}(?: {_NOUN})?\.?") for name, word in _MODALITY.items()}
_UNSURE = re.compile(
    r"\b(?:not|no|nor|or|than|rather|instead|could|would|should|unlike|compared?|best|next|confirm|follow|pet[/-]ct|pet[/-]mri?)\b|n't\b"
)
_OF_THIS = re.compile(
    r"\bmodality (?:is|of|was used|used|produced|generated) .*(?:this|the) (?:image|scan|slice|picture)|\bmodality is this\b"
)
_NUMBER = r"\s*(\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"[\[(]{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}[\])]")

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; it ends before the last two."""


@lru_cache(_TEXTS)  # a text is asked about its classes, their sides and its own, and questions come again
def tokens(text: str) -> tuple[str, ...]:
    """Words in lower case without a plural's s, and every mark between them; hyphens and underscores part words."""
    return tuple(_singular(word) for word in _TOKEN.findall(text.lower()))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


@dataclass(frozen=True, slots=True)
class Mention:
    """A class that a text names, by the words of its name, and whether as what is meant or only as a place."""

    words: tuple[str, ...]
    meant: bool


class Classes:
    """The classes of a data set, to be found in texts by their names with the words in any order, the longest name first."""

    def __init__(self, names: Iterable[str]) -> None:
        self.words = {name: words_of(name) for name in names}
        self._known = frozenset(self.words.values())
        self._longest = max((len(words) for words in self._known), default=0)
        self._first = frozenset(word for words in self._known for word in words)
        self._contradicts = lru_cache(_TEXTS)(self._judged)

    def mentions(self, said: Sequence[str]) -> Iterator[Mention]:
        """The classes that a text names, in order, from its tokens."""
        start = 0
        while start < len(said):
            length = self._length(said, start) if said[start] in self._first else 0
            if length:
                yield Mention(tuple(sorted(said[start : start + length])), _is_meant(said, start))
            start += length or 1

    def _length(self, said: Sequence[str], start: int) -> int:
        lengths = range(min(self._longest, len(said) - start), 0, -1)
        return next((length for length in lengths if tuple(sorted(said[start : start + length])) in self._known), 0)

    def contradict(self, text: str, shown: Collection[str]) -> bool:
        """Whether a text names classes, and those that its masks show are others. Never where the text could be meant otherwise."""
        return self._contradicts(text, frozenset(shown))

    def _judged(self, text: str, shown: frozenset[str]) -> bool:
        said = tokens(text)
        if _TURNING.intersection(said):
            return False
        found = list(self.mentions(said))
        meant = {mention.words for mention in found if mention.meant}
        if not meant or not shown:
            return False
        wrong = [name for name in shown if not self._is_said(name, said, found)]
        return bool(wrong) and (len(wrong) == len(shown) or len(meant) >= len(shown))

    def _is_said(self, name: str, said: Sequence[str], found: list[Mention]) -> bool:
        """Whether the words of a class occur, but for those that are part of the longer name of another."""
        own = self.words.get(name, words_of(name))
        if any(mention.words == own for mention in found):
            return True
        words = Counter(own)
        left = Counter(said)
        for mention in found:
            if words < Counter(mention.words):
                left -= Counter(mention.words)
        return words <= left

    def meant(self, text: str) -> set[str]:
        """The classes that a text names as what is meant; none where it could be meant otherwise."""
        said = tokens(text)
        if _TURNING.intersection(said):
            return set()
        named = {mention.words for mention in self.mentions(said) if mention.meant}
        return {name for name, words in self.words.items() if words in named}


@lru_cache(_TEXTS)
def words_of(name: str) -> tuple[str, ...]:
    """The words of a class, sorted."""
    return tuple(sorted(tokens(name)))


def _is_meant(said: Sequence[str], start: int) -> bool:
    before = [word for word in said[:start] if word not in _ARTICLES]
    if not before or before[-1] not in _LOCATIVE:
        return True
    return before[-1] == "of" and len(before) > 1 and before[-2] in _WHOLES


@lru_cache(_TEXTS)
def side_of(name: str) -> str:
    """The side in a class's name; empty where it has none or both."""
    found = SIDES.keys() & set(tokens(name))
    return found.pop() if len(found) == 1 else ""


def side_said(text: str, name: str) -> str:
    """The side that a text gives a class, right before or behind its name; empty where it gives none or both."""
    stem = [word for word in words_of(name) if word not in SIDES]
    said = tokens(text)
    windows = [sorted(said[start : start + len(stem) + 1]) for start in range(len(said))]
    found = {side for side in SIDES if stem and sorted([*stem, side]) in windows}
    return found.pop() if len(found) == 1 else ""


@lru_cache(_TEXTS)
def modality_contradicts(question: str, answer: str, modality: str) -> bool:
    """Whether question and answer together say that an image is of another modality than it is."""
    asked, answered = question.lower().strip(), answer.lower().strip()
    if not _ANY_MODALITY.search(asked) and not _ANY_MODALITY.search(answered):
        return False  # as most do, and nothing below would find any
    if named := [name for name, pattern in _ASKED.items() if pattern.match(asked)]:
        reply = re.match(r"(yes|no)\b", answered)
        return reply is not None and (reply[1] == "yes") != (modality in named)
    if (
        _OF_THIS.search(asked)
        and not _UNSURE.search(asked)
        and (bare := [name for name, pattern in _BARE.items() if pattern.fullmatch(answered)])
    ):
        return modality not in bare
    said = {name for text in (asked, answered) if not _UNSURE.search(text) for name, pattern in _STATED.items() if pattern.search(text)}
    return bool(said) and modality not in said


def boxes(text: str) -> list[tuple[float, ...]]:
    """Every four numbers in brackets."""
    return [tuple(map(float, found)) for found in _BOX.findall(text)]


def holds(numbers: tuple[float, ...], box: Box, height: int, width: int) -> bool:
    """Whether a box in any usual reading holds another to a pixel: corners or corner and size, in pixels, shares or thousandths."""
    scales = [(1.0, 1.0), (width, height) if max(numbers) <= 1 else (width / 1000, height / 1000)]
    return any(_covers(reading, box) for across, down in scales for reading in _readings(numbers, across, down))


def _readings(numbers: tuple[float, ...], across: float, down: float) -> Iterator[Box]:
    left, top, third, fourth = (number * scale for number, scale in zip(numbers, (across, down, across, down), strict=True))
    yield left, top, third, fourth
    yield left, top, left + third, top + fourth


def _covers(outer: Box, inner: Box) -> bool:
    slack = 1.0
    return outer[0] <= inner[0] + slack and outer[1] <= inner[1] + slack and outer[2] >= inner[2] - slack and outer[3] >= inner[3] - slack
