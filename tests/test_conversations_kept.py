"""What was read of a conversation is kept until it, its masks, what is known of its data set or the code that reads it are others."""

import json
from pathlib import Path

import planted
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unimed.data import conversation_facts, records, wording

SAID = {"row": 7, "conversation_id": "a", "sample_id": "s", "task": "grounding", "options": "", "solution": "", "rationale": ""} | {
    "turns": json.dumps([{"question": "Segment the liver.", "answer": "<SEG>", "regions": [], "targets": [["m"]]}]),
    "sample_exists": True,
    "modality": "ct",
    "dataset": "A",
    "slice": "z_0001",
    "named": [{"turn": 0, "role": "target", "sample_id": "s", "class_name": "spleen", "height": 9, "width": 9, "left": 0, "right": 9}],
    "present": ["spleen"],
}


def read(folder: Path, said: dict[str, object], classes: dict[str, list[str]], **orientation: str) -> tuple[int, bool]:
    """How many conversations had to be read for the facts, and whether their first agrees with the class of its mask."""
    pq.write_table(pa.Table.from_pylist([said]), folder / "joined.parquet")
    group = conversation_facts.Group(folder / "joined.parquet", 0, 0, folder / "facts.parquet")
    (folder / "facts.parquet").unlink(missing_ok=True)
    how = {"classes": classes, "orientation": orientation, "cache": folder / "cache"}
    unknown = conversation_facts.looked_up(group, **how)
    count = conversation_facts.write(unknown, **how) if unknown else 0
    return count, pq.read_table(folder / "facts.parquet")["class_agrees"][0].as_py()


def test_a_conversation_is_read_again_when_it_its_masks_or_the_classes_of_its_data_set_are_others(tmp_path):
    classes = {"A": ["liver", "spleen"], "B": ["liver"]}
    assert read(tmp_path, SAID, classes) == (1, False)
    assert read(tmp_path, SAID, classes) == (0, False)
    assert read(tmp_path, SAID, classes | {"B": ["kidney"]}) == (0, False), "another data set says nothing of it"
    assert read(tmp_path, SAID, {"A": ["spleen"]}) == (1, True), "liver is no class"
    mask = SAID["named"][0] | {"class_name": "liver"}
    assert read(tmp_path, SAID | {"named": [mask]}, classes) == (1, True)
    assert read(tmp_path, SAID | {"turns": str(SAID["turns"]).replace("liver", "spleen")}, classes) == (1, True)


def test_a_conversation_is_read_again_when_the_orientation_of_its_data_set_is_another(tmp_path):
    assert read(tmp_path, SAID, {}) == (1, True)
    assert read(tmp_path, SAID, {}, A="image") == read(tmp_path, SAID, {}, A="radiological") == (1, True)
    assert read(tmp_path, SAID, {}, A="image", B="image") == (0, True), "another data set says nothing of it"


@pytest.mark.parametrize("module", [conversation_facts, records, wording])
def test_a_conversation_is_read_again_by_other_code(tmp_path, monkeypatch, module):
    assert read(tmp_path, SAID, {}) == (1, True)
    monkeypatch.setattr(module, "__file__", planted.altered(module, tmp_path))
    assert read(tmp_path, SAID, {}) == (1, True)
