"""What can be answered without looking: how far letters, options and questions alone give the answers of a set away.

An audit judges nothing: its score stands beside chance, and a set that scores far above it says little of who sees.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unimed.eval import baselines, bootstrap
from unimed.eval.answers import normalise
from unimed.eval.baselines import Asked, Choice

_DOUBT = 2.0
"""Times that a clue is taken to have been seen with the share of chance before it is seen at all."""


@dataclass(frozen=True, slots=True)
class Item:
    """A multiple-choice question: its options, the place of the right one, and the group that shares an image or a patient.

    `known` items are learnt from and not asked, such as those of a training set.
    """

    question: str
    options: tuple[str, ...]
    right: int
    group: str
    image: str = ""
    known: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """An audit: what was tried, its mean score with an interval of 95 % over groups, what chance scores, and on how many items."""

    name: str
    score: float
    low: float
    high: float
    chance: float
    n: int


def summary(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The audits as a verdict holds them."""
    return [{key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(row).items()} for row in rows]


def multiple_choice(items: Sequence[Item]) -> list[Row]:
    """Audits of the items that are not known already; none where there are none. Each is answered from items of other groups alone."""
    asked = [item for item in items if not item.known]
    if not asked:
        return []
    seen = [item.options[item.right] for item in items if item.known]
    lookup = baselines.option_lookup([Choice(item.options, item.options[item.right]) for item in asked], seen)
    letters, clues = _Clues(items, _letter), _Clues(items, _all_clues)
    chance = [1 / len(item.options) for item in asked]
    rows = [
        _row("most frequent letter", [letters.score(item) for item in asked], chance, asked),
        _row("answer vocabulary: the option most often right elsewhere", lookup, chance, asked),
        _row("blind: letter, options and question together", [clues.score(item) for item in asked], chance, asked),
    ]
    if any(item.image for item in asked):
        rows.append(_row("file name: the option whose words are in it", list(map(_named_by_file, asked)), chance, asked))
    return [*rows, *_repeated(items, asked)]


def _row(name: str, scores: Sequence[float], chance: Sequence[float], asked: Sequence[Item]) -> Row:
    found = bootstrap.interval(scores, [item.group for item in asked], seed=0)
    return Row(name, found.mean, found.low, found.high, sum(chance) / len(chance), len(asked))


def _repeated(items: Sequence[Item], asked: Sequence[Item]) -> list[Row]:
    """The share of items whose question with its options, or whose image, is among the known ones too; it should be 0."""
    known = [item for item in items if item.known]
    if not known:
        return []
    texts, images = {_text(item) for item in known}, {item.image for item in known if item.image}
    rows = [_row("question with its options also in training", [float(_text(item) in texts) for item in asked], [0.0], asked)]
    if images:
        rows.append(_row("image also in training", [float(item.image in images) for item in asked], [0.0], asked))
    return rows


def _text(item: Item) -> tuple[str, ...]:
    return normalise(item.question), *sorted(map(normalise, item.options))


Clue = tuple[str, ...]


def _letter(item: Item, place: int) -> list[Clue]:
    return [("letter", str(place))]


def _all_clues(item: Item, place: int) -> list[Clue]:
    """What speaks for an option: its place, its text, its text with the question, and its words."""
    option = normalise(item.options[place])
    words = dict.fromkeys(option.split())
    return [("letter", str(place)), ("option", option), ("asked", normalise(item.question), option), *(("word", word) for word in words)]


class _Clues:
    """How often each clue stood at an option, and at a right one, in all and in each group."""

    def __init__(self, items: Sequence[Item], clues: Callable[[Item, int], list[Clue]]) -> None:
        self.clues = clues
        self.shown: Counter[Clue] = Counter()
        self.right: Counter[Clue] = Counter()
        self.own: dict[str, list[tuple[Clue, bool]]] = defaultdict(list)
        for item in items:
            for place in range(len(item.options)):
                for clue in clues(item, place):
                    self.shown[clue] += 1
                    self.right[clue] += place == item.right
                    self.own[item.group].append((clue, place == item.right))

    def score(self, item: Item) -> float:
        """1 where the likeliest option by the clues of other groups is right, 0 where it is not, a share where several are likeliest."""
        own_shown = Counter(clue for clue, _ in self.own[item.group])
        own_right = Counter(clue for clue, right in self.own[item.group] if right)
        chance = 1 / len(item.options)

        def odds(clue: Clue) -> float:
            shown, right = self.shown[clue] - own_shown[clue], self.right[clue] - own_right[clue]
            return math.log((right + _DOUBT * chance) / (shown + _DOUBT) / chance)

        return _share([sum(odds(clue) for clue in self.clues(item, place)) for place in range(len(item.options))], item.right)


def _share(scores: Sequence[float], right: int) -> float:
    best = [place for place, score in enumerate(scores) if math.isclose(score, max(scores), abs_tol=1e-9)]
    return (right in best) / len(best)


def _named_by_file(item: Item) -> float:
    """The score of picking an option all of whose words are in the path of the image, chance where no option's are."""
    path = set(normalise(item.image.replace("/", " ").replace("-", " ").replace(".", " ")).split())
    there = [float(bool(words) and words <= path) for words in (set(normalise(option).split()) for option in item.options)]
    return _share(there, item.right)


@dataclass(frozen=True, slots=True)
class Closed:
    """A question with one short answer, the group that shares a patient, and whether it is learnt from or asked."""

    asked: Asked
    group: str
    known: bool


def closed(questions: Sequence[Closed]) -> list[Row]:
    """Audits of the closed questions that are not known, answered from those that are; none where either are missing."""
    known, asked = ([one for one in questions if one.known is which] for which in (True, False))
    if not known or not asked:
        return []
    train, test = ([one.asked for one in some] for some in (known, asked))
    frequent = [Asked("", one.answer) for one in train]
    chance = baselines.answer_vocabulary(frequent, [Asked("", one.answer) for one in test])
    scores = baselines.answer_vocabulary(train, test)
    found = bootstrap.interval(scores, [one.group for one in asked], seed=0)
    name = "answer vocabulary: the most frequent answer to the question (chance: to all)"
    return [Row(name, found.mean, found.low, found.high, sum(chance) / len(chance), len(asked))]
