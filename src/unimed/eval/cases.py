"""Which cases a reader of the report sees, and what is shown of each: chosen by rule, never by hand."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

from unimed.data.masks import union
from unimed.eval.answers import split_thought
from unimed.eval.overlays import data_uri, panels

Images = Callable[[str], Image.Image]
Cells = dict[str, Any]
"""A prediction, or what the page prints of one thing; Any because cells are text, numbers or markup."""
_CASES, _THUMBNAIL_PX = 12, 220


def grouped(records: Sequence[Cells], column: str) -> dict[str, list[Cells]]:
    """The records by their value in a column, values in the order in which they first appear."""
    groups: dict[str, list[Cells]] = {}
    for record in records:
        groups.setdefault(str(record[column]), []).append(record)
    return groups


def overlays(records: Sequence[Cells], images: Images) -> Iterator[Cells]:
    """Worst, median and best case of up to four questions, from the hardest to the easiest.

    Where no question was asked three times, twelve cases of all questions from the worst to the best.
    """
    ranked = sorted((row for row in records if row["truth_rle"] != "[]" or row["answer_rle"] != "[]"), key=_by_score)
    if not ranked:
        return
    groups = [(question, group) for question, group in grouped(ranked, "question").items() if len(group) >= 3]
    groups.sort(key=lambda item: (_mean_score(item[1]), item[0]))
    chosen = [groups[place] for place in _spread(len(groups), _CASES // 3)]
    rest = ranked[0]["question"] if len(grouped(ranked, "question")) == 1 else "All questions"
    for title, group in chosen or [(rest, ranked)]:
        picked = [group[place] for place in _spread(len(group), 3 if chosen else _CASES)]
        yield {"title": title, "mean": _mean_score(group), "n": len(group), "cases": [_overlay(row, images) for row in picked]}


def _by_score(row: Cells) -> tuple[float | int, str, str]:
    return row["score"], row["conversation_id"], row["question"]


def _mean_score(group: Sequence[Cells]) -> float:
    return sum(row["score"] for row in group) / len(group)


def _spread(count: int, places: int) -> list[int]:
    """`places` positions from 0 to count - 1, evenly apart, with both ends; all where there are fewer."""
    return list(range(count)) if count <= places else [round(place * (count - 1) / (places - 1)) for place in range(places)]


def _overlay(row: Cells, images: Images) -> Cells:
    truth, answer = (union(json.loads(row[column]), row["height"], row["width"]) for column in ("truth_rle", "answer_rle"))
    verdict = f"Dice {row['score']:.3f}" if truth.any() else "absent, but pointed at"
    drawn = "" if answer.any() else ", nothing drawn"
    return {**row, "uri": data_uri(panels(images(row["sample_id"]), truth, answer)), "verdict": verdict + drawn}


def worst_answers(records: Sequence[Cells], images: Images) -> list[Cells]:
    """The lowest-scored answers, question types in turn so that one type does not fill the page."""
    return [_answer(row, images) for row in worst(records, "question_type", _CASES)]


def worst(records: Sequence[Cells], column: str, count: int) -> list[Cells]:
    """The lowest-scored of what is not quite right, the values of a column in turn so that one does not take all places."""
    wrong = sorted((row for row in records if row["score"] < 1), key=_by_score)
    groups = sorted(grouped(wrong, column).items())
    return [group[turn] for turn in range(count) for _, group in groups if turn < len(group)][:count]


def reasoning(records: Sequence[Cells], images: Images) -> list[Cells]:
    """Up to four right and four wrong answers, evenly spread over the set."""
    halves = [[row for row in records if row["score"] >= 1], [row for row in records if row["score"] < 1]]
    return [_thought(half[place], images) for half in halves for place in _spread(len(half), 4)]


def _answer(row: Cells, images: Images) -> Cells:
    picture = images(row["sample_id"]).convert("RGB")
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    texts = {name: short(str(row[name])) for name in ("question", "truth", "prediction")}
    asked, _, options = texts["question"].partition("\n")
    return {**row, **texts, "asked": asked, "options": options, "uri": data_uri(picture)}


def _thought(row: Cells, images: Images) -> Cells:
    parts = split_thought(row["prediction"])
    said = {"thought": short(parts.thought), "answer": short(parts.answer), "well_formed": parts.well_formed}
    return {**_answer(row, images), **said, "right": row["score"] >= 1}


def short(text: str, limit: int = 420) -> str:
    """The text, cut where it is too long for a page."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
