"""What a text answers: yes or no, a phrase, one of several options, a thought with its answer.

Rewards and scores share these rules, so they are strict where leniency could be farmed: an answer that names two alternatives names none.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from unimed.errors import InputError

_TOKEN = re.compile(r"(?<!\w)-?\d+(?:\.\d+)?(?!\w)|\w+|[<>≤≥±%+]")
_ARTICLE = re.compile(r"\b(?:(?i:an|the)|a)\b(?=\s+\w)|^\s*A(?=\s+\w)")
_FILLERS = {"a", "an", "and", "the"}
_TAKEN_BACK = {"and", "both", "either", "neither", "no", "nor", "not", "or"}
_EXCLUSIVE = (
    {"left", "right"},
    {"upper", "lower"},
    {"anterior", "posterior"},
    {"superior", "inferior"},
    {"medial", "lateral"},
    {"axial", "coronal", "sagittal"},
    {"benign", "malignant"},
    {"normal", "abnormal"},
    {"present", "absent"},
    {"male", "female"},
    {"ct", "mr", "mri", "pet", "ultrasound", "endoscopy", "fundus", "dermoscopy", "x"},
)
_POLARITY = {"yes", "no"}
_POLAR = re.compile(r"(?i)\W*(yes|no)\s*(?:[,.;:!]|$)")
_PLACE = "\ufffc"
"""Stands where an option's own words were, so that letters inside them are not read as choices."""
_NEGATED = re.compile(
    r"(?i)\b(?:not|no|never|without|except|isn['’]t|rather than|instead of)\s+(?:(?:the|an?|option|answer)\s+)*[\"'(\[]*$"
)
_BLOCKS = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True)
class Thought:
    """A completion taken apart: what was thought, what was answered, and whether it kept to the form."""

    thought: str
    answer: str
    well_formed: bool


def normalise(text: str) -> str:
    """The text in lower case without articles and punctuation, words one space apart.

    Decimal points, a minus before a number and the signs < > ≤ ≥ ± % + stay: they change what is said.
    """
    plain = unicodedata.normalize("NFKC", text).replace("−", "-").replace("_", " ")
    return " ".join(_TOKEN.findall(_ARTICLE.sub(" ", plain).lower()))


def closed_match(prediction: str, truth: str) -> bool:
    """Whether a prediction gives the true answer to a closed or short question, in whatever sentence.

    A truth that opens with "Yes" or "No" is compared by that word alone; any other has to stand in the prediction as it is, and nothing
    beside it may take it back: no second word of the same kind (left and right, CT and MR), no "or", "and", "both" or "not".
    """
    said, true = normalise(prediction), normalise(truth)
    if polar := _POLAR.match(truth):
        return _POLARITY.intersection(said.split()) == {polar.group(1).lower()}
    rest, hits = re.subn(rf"(?<!\S){re.escape(true)}(?!\S)", " ", said)
    beside = set(rest.split())
    return bool(true) and hits > 0 and beside.isdisjoint(_TAKEN_BACK | _rivals(true.split()))


def _rivals(words: Sequence[str]) -> set[str]:
    kinds = [kind for kind in _EXCLUSIVE if kind.intersection(words)]
    return set().union(*kinds) - set(words)


def chosen_option(text: str, options: Sequence[str]) -> int | None:
    """The index of the one option that a text names, by letter, by words or by both.

    None when it names no option or several, or denies one.
    "A", "(a)", "A) Lungs", "Answer: A", "**A**" and "Lungs" all name the first of ["Lungs", "Heart"]. The longest option wins where one
    contains another. Letters count only where they stand as a choice, never inside words or as the article "A".
    MedVLM-R1 (Pan et al. 2025, arXiv:2502.19634) counts any letter A to J of the answer instead, so that "A) Lungs" earns it nothing.
    """
    plain = re.sub(r"[*`$]", "", unicodedata.normalize("NFKC", text)).replace("−", "-").replace("_", " ").strip()
    by_words, rest = _named_in_words(plain, options)
    mentions = [*by_words, *_named_by_letter(rest, len(options))]
    if any(_NEGATED.search(plain[:start]) for start, _ in mentions):
        return None
    named = {index for _, index in mentions}
    return named.pop() if len(named) == 1 else None


def _named_in_words(text: str, options: Sequence[str]) -> tuple[list[tuple[int, int]], str]:
    """Where and which options stand in the text, and the text with those words covered."""
    patterns: dict[str, list[int]] = {}
    for index, option in enumerate(options):
        if pattern := _as_pattern(option):
            patterns.setdefault(pattern, []).append(index)
    found: list[tuple[int, int]] = []
    for pattern in sorted(patterns, key=len, reverse=True):
        for hit in re.finditer(pattern, text, re.IGNORECASE):
            found += [(hit.start(), index) for index in patterns[pattern]]
            text = text[: hit.start()] + _PLACE * len(hit.group()) + text[hit.end() :]
    return found, text


@lru_cache(maxsize=4096)
def _as_pattern(option: str) -> str:
    """A pattern for the option's words in a row, whatever stands between them; none for a bare letter."""
    tokens = [token for token in normalise(option).split() if token not in _FILLERS]
    if not tokens or (len(tokens) == 1 and re.fullmatch("[a-z]", tokens[0])):
        return ""
    gap = r"[^\w<>≤≥±%+]*(?:\b(?:and|the|an?)\b[^\w<>≤≥±%+]*)*"
    return gap.join(_token_pattern(token) for token in tokens)


def _token_pattern(token: str) -> str:
    if token[-1].isdigit() and not token[0].isalpha():
        return rf"(?<![\w.-]){re.escape(token)}(?![\w]|\.\d)"
    return rf"\b{re.escape(token)}\b" if token.isalnum() else re.escape(token)


def _named_by_letter(text: str, count: int) -> Iterator[tuple[int, int]]:
    """Where and which letters stand as choices; once one does, every lone capital counts as another."""
    if not 0 < count <= 26:
        raise InputError(f"a question has 1 to 26 options, found {count}")
    choices, lone = _letter_patterns(chr(ord("A") + count - 1))
    hits = [hit for pattern in choices for hit in pattern.finditer(text)]
    for hit in [*hits, *(lone.finditer(text) if hits else ())]:
        group = hit.lastindex or 0
        yield hit.start(group), ord(hit.group(group).upper()) - ord("A")


@lru_cache(maxsize=32)
def _letter_patterns(last: str) -> tuple[list[re.Pattern[str]], re.Pattern[str]]:
    """Patterns for a letter that stands as a choice, and one for any lone capital, each with one group."""
    capital, either = f"([A-{last}])", f"([A-{last}a-{last.lower()}])"
    asked = r"(?i:\b(?:answers?|options?|choices?|letters?|choose|pick|select|boxed)\b(?:\s+(?:is|are|would be|should be|must be))?)"
    opening = r"[\s:=–—\"'(\[{-]*"
    article = rf"(?<=A)\s+{_PLACE}"
    choices = [
        rf"\A\W*{either}\W*\Z",  # nothing but the letter
        rf"(?<![\w'’])\(\s*{either}\s*\)|(?<![\w'’(]){either}\)",  # (A)  a)
        rf"(?m:^)\W*{either}\s*[.:,;/](?=\s|$|[A-Z{_PLACE}])|(?m:^)\W*{capital}\s+[–—-]\s",  # a line that opens with A.  A:  A -
        rf"\A\W*(?![AI]){capital}(?=\s)",  # B because ...; A and I alone are words
        rf"{asked}{opening}{capital}\b(?![-'’]\w)(?!{article})",  # the answer is B
        rf"{asked}{opening}{either}(?=\s*(?:[).,;\]}}\"']|$))",  # answer: b.
        rf"(?i:\b(?:is|be|it's))\s+{capital}\W*\Z",  # ... it is B.
    ]
    lone = rf"(?<![\w'’.-]){capital}(?![\w'’]|-\w|{article}|(?<=[AI])\s+[a-z])"
    return [re.compile(choice) for choice in choices], re.compile(lone)


def split_thought(text: str) -> Thought:
    """The text as thought and answer.

    Well formed when it is one think block and then one answer block, neither blank, and nothing else. Otherwise the thought is what
    stands in the one think block and the answer what stands in the one answer block, "" where there is none or more than one.
    """
    once = all(text.count(tag) == 1 for tag in _TAGS)
    if once and (match := _BLOCKS.fullmatch(text)):
        thought, answer = (group.strip() for group in match.groups())
        return Thought(thought, answer, bool(thought and answer))
    return Thought(*(_only_block(text, opening, closing) for opening, closing in (_TAGS[:2], _TAGS[2:])), well_formed=False)


def _only_block(text: str, opening: str, closing: str) -> str:
    if text.count(opening) != 1 or text.count(closing) != 1:
        return ""
    return text.partition(opening)[2].partition(closing)[0].strip()


def strict_answer(text: str, options: Sequence[str], solution: str) -> bool:
    """Whether the text keeps to the form and its answer block names the option with the solution's letter."""
    right = _index_of(solution, options)
    parts = split_thought(text)
    return parts.well_formed and chosen_option(parts.answer, options) == right


def lenient_answer(text: str, options: Sequence[str], solution: str) -> bool:
    """Whether the option that the text settles on is right, whatever its form.

    Looked for in the answer block, then after the thought, in the whole text and in its last line; the first that names one option counts.
    """
    right = _index_of(solution, options)
    untagged = re.sub("|".join(_TAGS), " ", text).strip()
    after = text.rpartition("</think>")[2] if "</think>" in text else ""
    places = (split_thought(text).answer, re.sub("|".join(_TAGS), " ", after), untagged, untagged.rpartition("\n")[2])
    found = (chosen_option(place, options) for place in places)
    return next((choice for choice in found if choice is not None), None) == right


def _index_of(solution: str, options: Sequence[str]) -> int:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
    if len(solution) != 1 or solution not in letters:
        raise InputError(f"a solution is one of the letters {letters!r} of {len(options)} options, found {solution!r}")
    return letters.index(solution)
