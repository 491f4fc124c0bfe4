"""The worst cases that evaluate keeps and the gate shows: few, small, nameless, and the same for the same input."""

import base64
import io
import json
import re

import answered
import numpy as np
import pytest
from PIL import Image

from unimed.errors import InputError
from unimed.eval import worst
from unimed.eval.overlays import PREDICTION, REGION, TRUTH


@pytest.fixture
def report(tmp_path):
    """An evaluation with ten worst cases."""
    answered.write(tmp_path, answered.predictions(closed=0.5, dice=0.4))
    return tmp_path


def written(folder, found) -> list[dict]:
    worst.write(folder, found, answered.image)
    return json.loads((folder / "worst.json").read_text())


def test_ten_cases_of_the_finished_model_are_kept_tasks_in_turn_each_from_its_worst(tmp_path):
    found = answered.predictions(closed=0.5, dice=0.4)
    grounding = (found["stage"] == "grpo") & (found["task"] == "grounding")
    found.loc[found[grounding].index[7], "score"] = 0.1
    told = written(tmp_path, found)
    assert [case["task"] for case in told] == ["grounding", "vqa"] * 5
    assert [case["score"] for case in told] == [0.1, 0.0, 0.4, 0.0, 0.4, 0.0, 0.4, 0.0, 0.4, 0.0]
    assert sorted(file.name for file in (tmp_path / "worst").iterdir()) == [f"{number:02}.png" for number in range(1, 11)]


def test_answers_that_are_right_or_of_another_stage_are_not_kept(tmp_path):
    found = answered.predictions(closed=1.0, dice=1.0)
    found.loc[found["stage"] == "vqa_expert", "score"] = 0.0
    assert written(tmp_path, found) == [] == worst.read(tmp_path)


def test_the_same_predictions_give_the_same_bytes_in_any_order(tmp_path):
    found = answered.predictions(closed=0.5)
    for name, rows in (("a", found), ("b", found.iloc[::-1])):
        (tmp_path / name).mkdir()
        written(tmp_path / name, rows)
    for file in ("worst.json", "worst/01.png", "worst/10.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_neither_patient_nor_image_nor_conversation_is_named(report):
    assert not re.search(r"SetA|case_|slice_|vqa_slice", (report / "worst.json").read_text())
    assert b"tEXt" not in (report / "worst/01.png").read_bytes()


def near(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """Pixels that have the colour, but for the few steps that a palette may move it."""
    return int((np.abs(np.asarray(picture.convert("RGB")).astype(int) - colour).max(-1) < 12).sum())


def test_a_picture_outlines_region_truth_and_prediction_and_is_small(tmp_path):
    found = answered.predictions(dice=0.4)
    found["region_rle"] = answered.square(40)
    written(tmp_path, found)
    picture = Image.open(tmp_path / "worst/01.png")
    assert picture.size == (384, 384) and (tmp_path / "worst/01.png").stat().st_size < 60_000
    assert all(near(picture, colour) > 200 for colour in (TRUTH, PREDICTION, REGION))
    # The truth begins at column 10 of 64, the prediction at 14: six pixels of the picture each.
    rows = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(rows[180, 61] - TRUTH).max() < 12 and np.abs(rows[180, 85] - PREDICTION).max() < 12


def test_an_image_that_is_not_square_keeps_its_shape(tmp_path):
    found = answered.predictions(closed=0.5, dice=1.0)
    found["height"] = answered.SIDE // 2
    worst.write(tmp_path, found[found["task"] == "vqa"], lambda name: answered.image(name).crop((0, 0, answered.SIDE, answered.SIDE // 2)))
    assert Image.open(tmp_path / "worst/01.png").size == (384, 192)


def test_what_was_written_is_read_with_its_pictures(report):
    first, *others = worst.read(report)
    assert len(others) == 9 and first["truth"] == "<SEG>"
    assert base64.b64decode(first["uri"].removeprefix("data:image/png;base64,")) == (report / "worst/01.png").read_bytes()


def large() -> bytes:
    content = io.BytesIO()
    Image.new("L", (513, 2)).save(content, format="PNG")
    return content.getvalue()


def jpeg() -> bytes:
    content = io.BytesIO()
    Image.new("L", (5, 2)).save(content, format="JPEG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"<svg onload=alert(1)>", "something else"),
        (jpeg(), "something else"),
        (large(), "513 x 2"),
        (b"0" * (2**20 + 1), "something else"),
    ],
)
def test_a_picture_that_evaluate_did_not_write_is_an_error(report, content, found):
    (report / "worst/03.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"worst/03.png: expected .* found {found}"):
        worst.read(report)


def test_a_link_to_another_picture_is_an_error(report):
    (report / "worst/03.png").unlink()
    (report / "worst/03.png").symlink_to("01.png")
    with pytest.raises(InputError, match="worst/03.png: expected a PNG that evaluate wrote"):
        worst.read(report)


@pytest.mark.parametrize("told", ["{}", "[1]", '[{"task": "vqa", "score": "high"}]'])
def test_other_json_is_an_error(report, told):
    (report / "worst.json").write_text(told)
    with pytest.raises(InputError, match="worst.json: expected the worst cases that evaluate writes"):
        worst.read(report)
