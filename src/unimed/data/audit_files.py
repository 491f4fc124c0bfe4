"""What audits are made of: a file in MedVLM-R1's schema, with or without its images, or the conversations of a subset."""

import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from unimed.data import audit, conversation_facts, images, names, paths, records
from unimed.data.audit import Closed, Item
from unimed.data.streamed import load
from unimed.errors import InputError
from unimed.eval.baselines import Asked

_LETTERED = re.compile(r"(?:^|(?<=[\s(,;]))\(?([A-Z])[).:]\s+")
_MAX_PIXELS = 2**28


@dataclass(frozen=True, slots=True)
class Read:
    """The items of a file and what is wrong with the records that are none."""

    items: tuple[Item, ...]
    faults: tuple[str, ...]


def read(path: Path, known: bool = False) -> Read:
    """The multiple-choice items of a JSON list or of JSON lines, which need a question or problem, and a solution or answer.

    Raises InputError when the file is neither, or no record of it can be read.
    """
    items, faults = [], []
    for position, record in enumerate(_records(path)):
        try:
            items.append(replace(_item(record, path.name, position), known=known))
        except InputError as error:
            faults.append(str(error))
    if not items:
        raise InputError(f"{path}: expected at least one multiple-choice record, found {faults[0] if faults else 'an empty list'}")
    return Read(tuple(items), tuple(faults))


def _records(path: Path) -> Sequence[Any]:
    try:
        found = load(path)
    except InputError:
        lines = list(_lines(path))
        if len(lines) < 2:
            raise
        return lines
    if isinstance(found, dict) and "image" in found:
        return [found]
    if not isinstance(found, list):
        raise InputError(f"{path}: expected a list of records or JSON lines, found {type(found).__name__}")
    return found


def _lines(path: Path) -> Iterator[Any]:
    """The values of JSON lines, none where the first line is no JSON. Raises InputError with the line of a later one that is not."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            if number == 1:
                return
            raise InputError(f"{path}: expected a JSON value on every line, found other text in line {number}") from error


def _item(record: Any, file: str, position: int) -> Item:
    if isinstance(record, dict) and "options" not in record and isinstance(record.get("problem"), str):
        record = {**record, **_apart(record["problem"])}
    found = records.parse(record, task="reasoning", file=file, position=position)
    question = found.exchanges[0].question.removesuffix(records.lettered("", list(found.options)))
    return Item(question, found.options, string.ascii_uppercase.index(found.solution), group=found.image, image=found.image)


def _apart(problem: str) -> Mapping[str, Any]:
    """The question of a problem and its options, lettered A, B and so on, on lines of their own or not."""
    marks: list[re.Match[str]] = []
    for mark in _LETTERED.finditer(problem):
        if mark[1] == string.ascii_uppercase[: len(marks) + 1][-1]:
            marks.append(mark)
    if not marks:
        return {"question": problem, "options": []}
    ends = [*(mark.start() for mark in marks[1:]), len(problem)]
    options = [problem[mark.end() : end].strip(" \t\n,;") for mark, end in zip(marks, ends, strict=True)]
    return {"question": problem[: marks[0].start()].strip(), "options": options}


def pictures(items: Sequence[Item], folder: Path) -> dict[str, int]:
    """How many different images items name, how many of them lie in a folder, and how many of those decode."""
    named = sorted({item.image for item in items})
    there = [content for name in named if (content := _content(folder, name)) is not None]
    return {"named": len(named), "there": len(there), "decode": sum(map(_decodes, there))}


def _content(folder: Path, name: str) -> bytes | None:
    for place in (name, names.stem(name) + Path(name).suffix):
        try:
            return paths.content(folder, place)
        except (InputError, OSError):
            continue
    return None


def _decodes(content: bytes) -> bool:
    try:
        images.decode(content, "", _MAX_PIXELS)
    except InputError:
        return False
    return True


def subset(connection: duckdb.DuckDBPyConnection) -> list[audit.Row]:
    """Audits of the multiple choice and the closed questions of a subset, learnt from its train split and asked of the others."""
    query = """
        SELECT task, question_type, answer_type, turns, options, solution, dataset || '/' || "case" AS "group", split
        FROM numbered_conversations AS said JOIN known_samples USING (sample_id) WHERE task = 'reasoning' OR answer_type = 'CLOSED'
        ORDER BY said.row
    """
    rows = connection.sql(query).to_arrow_table().to_pylist()
    items = [item for row in rows if row["task"] == "reasoning" for item in _of_row(row)]
    closed = [
        Closed(Asked(turn["question"], turn["answer"], row["question_type"]), row["group"], row["split"] == "train")
        for row in rows
        if row["task"] != "reasoning"
        for turn in conversation_facts.turns(row["turns"])
    ]
    return [*audit.multiple_choice(items), *audit.closed(closed)]


def _of_row(row: Mapping[str, Any]) -> Iterator[Item]:
    """The item of a conversation, none where its solution is no option."""
    said = conversation_facts.turns(row["turns"])
    if said and conversation_facts.is_option(row, [said[0]["answer"]]):
        options = tuple(map(str, json.loads(row["options"])))
        question = said[0]["question"].removesuffix(records.lettered("", list(options)))
        yield Item(question, options, string.ascii_uppercase.index(row["solution"]), row["group"], known=row["split"] == "train")
