"""What can be scored without looking at the image: any model has to be read beside these numbers.

Every function gives one score per test item, so that intervals and paired differences can be taken.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from unimed.eval.answers import closed_match, normalise


@dataclass(frozen=True)
class Asked:
    """A question with its true answer and the kind of question it is."""

    question: str
    answer: str
    question_type: str = "other"


@dataclass(frozen=True)
class Choice:
    """The options of a multiple-choice item and the true one, as text."""

    options: tuple[str, ...]
    answer: str


def answer_vocabulary(train: Sequence[Asked], test: Sequence[Asked], match: Callable[[str, str], bool] = closed_match) -> list[float]:
    """1 where the most frequent training answer is right, 0 elsewhere.

    That is the most frequent answer to the same question, else to questions of its type, else to all.
    Answers that are equally frequent are settled by the alphabet. Without training questions everything scores 0.
    """
    by_question = _most_frequent((normalise(item.question), item.answer) for item in train)
    by_type = _most_frequent((item.question_type, item.answer) for item in train)
    overall = _most_frequent(("", item.answer) for item in train).get("")
    guesses = (by_question.get(normalise(item.question), by_type.get(item.question_type, overall)) for item in test)
    return [float(guess is not None and match(guess, item.answer)) for guess, item in zip(guesses, test, strict=True)]


def _most_frequent(pairs: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    """For each key its most frequent value."""
    counts: dict[str, Counter[str]] = {}
    for key, value in pairs:
        counts.setdefault(key, Counter())[value] += 1
    return {key: _winner(counter) for key, counter in counts.items()}


def _winner(counter: Counter[str]) -> str:
    return min(counter, key=lambda value: (-counter[value], value))


def majority_letter(train: Sequence[str], test: Sequence[str]) -> list[float]:
    """1 where the most frequent letter of the training solutions is the solution, 0 elsewhere."""
    letter = _winner(Counter(train)) if train else None
    return [float(solution == letter) for solution in test]


def option_lookup(items: Sequence[Choice], seen: Sequence[str] = ()) -> list[float]:
    """The score of picking the option most often right elsewhere: 1, 0, or a share where options tie.

    "Elsewhere" is all other items of the set and the answers in `seen`, such as the training set's. Items that share their options
    evenly as answers score chance or less, for leaving out an item's own answer tips ties against it; a set whose distractors are never
    right scores near 1.
    """
    right = Counter(_plain(answer) for answer in (*seen, *(item.answer for item in items)))
    return [_lookup_score(item, right) for item in items]


def _lookup_score(item: Choice, right: Counter[str]) -> float:
    answer = _plain(item.answer)
    options = [_plain(option) for option in item.options]
    counts = [right[option] - (option == answer) for option in options]
    best = [option for option, count in zip(options, counts, strict=True) if count == max(counts)]
    return best.count(answer) / len(best)


def _plain(option: str) -> str:
    return option.strip().lower()
