"""The ladder on disk and side by side with others."""

import pytest

from unimed.errors import InputError
from unimed.eval import ladder
from unimed.eval.ladder import Row

HALF = Row("align", "loss", 0.5, 0.4, 0.6, 200, 0.9)
BARE = Row("grpo", "format", None, None, None, 0)


def test_rows_come_back_as_they_were_written(tmp_path):
    ladder.write(tmp_path / "ladder.json", [HALF, BARE])
    assert ladder.read(tmp_path / "ladder.json") == [HALF, BARE]


@pytest.mark.parametrize("text", [None, "", "{}x", "[1]", '[{"stage": "align"}]'])
def test_a_file_that_is_no_ladder_is_said_in_one_sentence(tmp_path, text):
    file = tmp_path / "ladder.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match="ladder.json: expected a ladder of evaluate, found"):
        ladder.read(file)


def test_ladders_stand_side_by_side_with_interval_and_baseline():
    other = Row("align", "loss", 0.25, 0.2, 0.3, 150)
    assert ladder.side_by_side({"seed 0": [HALF, BARE], "seed 1": [other]}).splitlines() == [
        "| stage | metric | n | seed 0 | seed 1 |",
        "| --- | --- | --- | --- | --- |",
        "| align | loss | 150 | 0.500 (0.400–0.600) vs 0.900 | 0.250 (0.200–0.300) |",
        "| grpo | format | 0 | – | – |",
    ]
