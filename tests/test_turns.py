"""The turns of a conversation are read whole or not at all, and how Python collects its garbage is nobody's business afterwards."""

import gc
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unimed.data import conversation_facts
from unimed.data.mask_facts import Group

TURN = {"question": "Segment the liver.", "answer": "<SEG>", "regions": ["a"], "targets": [["b", "c"], []]}


def test_turns_of_the_right_shape_are_read():
    assert conversation_facts.turns(json.dumps([TURN, TURN])) == [TURN, TURN]


@pytest.mark.parametrize(
    "wrong",
    [
        {"question": None},
        {"question": 1},
        {"answer": ["<SEG>"]},
        {"regions": "a"},
        {"regions": [1]},
        {"regions": ["a", None]},
        {"regions": None},
        {"targets": "b"},
        {"targets": ["b"]},
        {"targets": [["b"], [2]]},
        {"targets": [["b"], None]},
        {"targets": {"b": "c"}},
    ],
)
def test_one_turn_of_another_shape_makes_all_unreadable(wrong):
    assert conversation_facts.turns(json.dumps([TURN, TURN | wrong])) == []


@pytest.mark.parametrize("missing", sorted(TURN))
def test_a_turn_that_lacks_something_is_unreadable(missing):
    assert conversation_facts.turns(json.dumps([{key: value for key, value in TURN.items() if key != missing}])) == []


@pytest.mark.parametrize("text", ["", "[", "7", "null", '["a"]', "[[]]", "[" * 100_000])
def test_other_json_and_none_is_unreadable(text):
    assert conversation_facts.turns(text) == []


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_collected_afterwards_as_before_also_after_an_error(collects, tmp_path: Path, monkeypatch):
    source, seen = tmp_path / "conversations.parquet", []
    pq.write_table(pa.table({"turns": [json.dumps([TURN])]}), source)
    group = Group(source, 0, 0, tmp_path / "named.parquet")
    read = conversation_facts.turns
    (gc.enable if collects else gc.disable)()
    try:
        monkeypatch.setattr(conversation_facts, "turns", lambda text: seen.append(gc.isenabled()) or read(text))
        assert conversation_facts.write_named(group) == 3
        assert (gc.isenabled(), seen) == (collects, [False])
        monkeypatch.setattr(conversation_facts, "turns", lambda text: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            conversation_facts.write_named(group)
        assert gc.isenabled() == collects
    finally:
        gc.enable()
