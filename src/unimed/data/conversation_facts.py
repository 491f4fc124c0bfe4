"""How each row of conversations.parquet fits the other tables and what its words say of the masks it names."""

import gc
import json
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unimed.data import fact_cache, mask_facts, records, wording
from unimed.data.mask_facts import Group
from unimed.data.records import REGION, SEG

Row = Mapping[str, Any]
NAMED = pa.schema([("row", pa.int64()), ("turn", pa.int32()), ("role", pa.string()), ("mask_id", pa.string())])
"""Masks that conversations name: the conversation's row, the turn, and whether as a target or as a region."""


@dataclass(frozen=True, slots=True)
class ConversationFacts:
    """What the contract asks of a conversation; unmatched are marks without a mask and masks without a mark, turn by turn."""

    row: int
    conversation_id: str
    sample_exists: bool
    readable: bool
    masks_resolve: bool
    seg_unmatched: int
    region_unmatched: int
    empty_texts: int
    solution_is_option: bool
    class_agrees: bool
    region_class_agrees: bool
    absent_is_absent: bool
    side_agrees: bool
    side_is_seen: bool
    modality_agrees: bool
    box_holds: bool
    text: str


_KINDS = {int: pa.int64(), bool: pa.bool_(), str: pa.string()}
FACTS = pa.schema([(name, _KINDS[kind]) for name, kind in ConversationFacts.__annotations__.items()])


@contextmanager
def _uncollected() -> Iterator[None]:
    """Python looks for no cycles: rows by the thousand have none, and to look through them takes a third of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def write_named(group: Group) -> int:
    """Write NAMED of a row group of conversations.parquet, and give the number of masks named.

    A row that cannot be read names nothing.
    """
    rows = mask_facts.read(group, ["turns"])
    with _uncollected():
        named = [name for row in rows.to_pylist() for name in _named(row["row"], turns(row["turns"]))]
    pq.write_table(pa.Table.from_pylist(named, schema=NAMED), group.path)
    return len(named)


def _named(row: int, said: Sequence[Row]) -> Iterator[dict[str, Any]]:
    for number, turn in enumerate(said):
        for mask_id in (mask_id for target in turn["targets"] for mask_id in target):
            yield {"row": row, "turn": number, "role": "target", "mask_id": mask_id}
        for mask_id in turn["regions"]:
            yield {"row": row, "turn": number, "role": "region", "mask_id": mask_id}


def looked_up(group: Group, classes: Mapping[str, Sequence[str]], orientation: Mapping[str, str], cache: Path | None) -> Group | None:
    """None where the cache has what `write` would, which is written; else the group with its key."""
    rows = pq.ParquetFile(group.source).read_row_group(group.number)
    key = _key(rows, _about(rows, classes, orientation))
    kept = fact_cache.find(cache, key, FACTS)
    if kept is not None:
        pq.write_table(kept, group.path, compression="zstd")
    return replace(group, key=key) if kept is None else None


def write(group: Group, classes: Mapping[str, Sequence[str]], orientation: Mapping[str, str], cache: Path | None) -> int:
    """Write FACTS of a row group of conversations with the masks they name, see facts.py; gives the number of rows.

    `classes` and `orientation` are by data set: names, and "radiological" where the patient's left is on the right, or "image".
    """
    rows = pq.ParquetFile(group.source).read_row_group(group.number)
    found = _measured(rows, _about(rows, classes, orientation))
    fact_cache.keep(cache, group.key, found)
    pq.write_table(found, group.path, compression="zstd")
    return len(rows)


def _about(rows: pa.Table, classes: Mapping[str, Sequence[str]], orientation: Mapping[str, str]) -> dict[str, tuple[list[str], str]]:
    """Classes and orientation of the data sets that the rows are of."""
    return {dataset: (sorted(classes.get(dataset, ())), orientation.get(dataset, "")) for dataset in set(rows["dataset"].to_pylist())}


def _key(rows: pa.Table, about: Mapping[str, tuple[Sequence[str], str]]) -> str:
    return fact_cache.key(fact_cache.digest(rows), (sys.modules[__name__], records, wording), json.dumps(about, sort_keys=True))


def _measured(rows: pa.Table, about: Mapping[str, tuple[Sequence[str], str]]) -> pa.Table:
    known = {dataset: (wording.Classes(names), orientation) for dataset, (names, orientation) in about.items()}
    with _uncollected():
        found = [facts(row, *known[row["dataset"]]) for row in rows.to_pylist()]
    return pa.table([pa.array([getattr(one, name) for one in found], FACTS.field(name).type) for name in FACTS.names], schema=FACTS)


def facts(row: Row, classes: wording.Classes, orientation: str) -> ConversationFacts:
    """The facts of one conversation, given with `named`: the masks it names as they were found."""
    said = turns(row["turns"])
    questions, answers = [turn["question"] for turn in said], [turn["answer"] for turn in said]
    asked, answered = "\n".join(questions), "\n".join(answers)
    shown = [_Shown.of(turn, number, row["named"]) for number, turn in enumerate(said)]
    seen = [_side_is_seen(one, row, orientation) for one in shown]
    targets = [target for turn in said for target in turn["targets"]]
    return ConversationFacts(
        row=row["row"],
        conversation_id=row["conversation_id"],
        sample_exists=row["sample_exists"],
        readable=bool(said),
        masks_resolve=all(targets) and all(mask["sample_id"] == row["sample_id"] for mask in row["named"]),
        seg_unmatched=sum(abs(turn["answer"].count(SEG) - len(turn["targets"])) for turn in said),
        region_unmatched=sum(abs(turn["question"].count(REGION) - len(turn["regions"])) for turn in said),
        empty_texts=sum(not text.strip() for text in (*questions, *answers)),
        solution_is_option=row["task"] != "reasoning" or is_option(row, answers),
        class_agrees=not any(classes.contradict(one.question, one.classes("target")) for one in shown),
        region_class_agrees=not any(classes.contradict(one.answer, one.classes("region")) for one in shown if not one.like("target")),
        absent_is_absent=row["task"] != "grounding" or not any(_is_there(one, classes, row["present"]) for one in shown),
        side_agrees=all(map(_side_agrees, shown)),
        side_is_seen=all(seen),
        modality_agrees=not row["sample_exists"] or not any(_modality_contradicts(row, one) for one in shown),
        box_holds=all(map(_box_holds, shown)),
        text="\n".join([asked.replace(REGION, ""), answered.replace(SEG, ""), row["rationale"]]),
    )


@dataclass(frozen=True, slots=True)
class _Shown:
    """A turn with the masks that it names and that were found."""

    question: str
    answer: str
    masks: tuple[Row, ...]

    @classmethod
    def of(cls, turn: Row, number: int, named: Sequence[Row]) -> "_Shown":
        """A turn with those of all named masks that are its own."""
        return cls(turn["question"], turn["answer"], tuple(mask for mask in named if mask["turn"] == number and mask["sample_id"]))

    def like(self, role: str) -> list[Row]:
        """The masks in a role."""
        return [mask for mask in self.masks if mask["role"] == role]

    def classes(self, role: str) -> set[str]:
        """The classes of the masks in a role."""
        return {mask["class_name"] for mask in self.like(role)}

    def texts(self) -> Iterator[tuple[Row, str]]:
        """Each mask with the text that names what it shows: the question of a target, the answer of a region."""
        for mask in self.masks:
            yield mask, self.question if mask["role"] == "target" else self.answer


def _is_there(one: _Shown, classes: wording.Classes, present: Sequence[str]) -> bool:
    """Whether a turn that points at nothing asks for one class alone, and a mask of it is there."""
    asked = classes.meant(one.question) if not one.masks and SEG not in one.answer else set()
    return len(asked) == 1 and asked <= set(present)


def _side_agrees(one: _Shown) -> bool:
    sided = [
        (side, wording.side_said(text, mask["class_name"])) for mask, text in one.texts() if (side := wording.side_of(mask["class_name"]))
    ]
    return not any(said and side != said for side, said in sided)


def _side_is_seen(one: _Shown, row: Row, orientation: str) -> bool:
    """Whether masks lie on the side that their class or their text gives them, where it is known which side that is."""
    if not orientation or str(row["slice"]).startswith("x_"):
        return True
    for mask, text in one.texts():
        side = wording.side_of(mask["class_name"]) or wording.side_said(text, mask["class_name"])
        half = mask["width"] / 2
        seen = "left" if 0 < mask["right"] <= half else "right" if mask["left"] >= half > 0 else ""
        if side and seen and side != (wording.SIDES[seen] if orientation == "radiological" else seen):
            return False
    return True


def _modality_contradicts(row: Row, one: _Shown) -> bool:
    answer = one.answer
    if row["task"] == "reasoning" and is_option(row, [answer]):
        answer = json.loads(row["options"])[string.ascii_uppercase.index(answer)]
    return wording.modality_contradicts(one.question.partition("\n")[0], answer, row["modality"])


def _box_holds(one: _Shown) -> bool:
    """Whether the only box of a turn holds its only mask."""
    found = wording.boxes(f"{one.question}\n{one.answer}")
    if len(found) != 1 or len(one.masks) != 1 or not one.masks[0]["right"]:
        return True
    mask = one.masks[0]
    return wording.holds(found[0], (mask["left"], mask["top"], mask["right"], mask["bottom"]), mask["height"], mask["width"])


def turns(text: str) -> list[Any]:
    """The turns of a conversation; none when the text is not what tables.py describes."""
    try:
        said = json.loads(text)
        fits = all(_is_turn(turn) for turn in said)
    except (json.JSONDecodeError, TypeError, RecursionError):
        return []
    return said if fits else []


def _is_turn(turn: Any) -> bool:
    return (
        isinstance(turn, dict)
        and _are_texts([turn.get("question"), turn.get("answer")])
        and _are_texts(turn.get("regions"))
        and isinstance(turn.get("targets"), list)
        and all(map(_are_texts, turn["targets"]))
    )


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and {str}.issuperset(map(type, values))


def is_option(row: Row, answers: list[str]) -> bool:
    """Whether the only answer of a multiple-choice row is its solution, and that the letter of an option."""
    try:
        options = json.loads(row["options"])
    except json.JSONDecodeError:
        return False
    return isinstance(options, list) and row["solution"] in tuple(string.ascii_uppercase[: len(options)]) and answers == [row["solution"]]
