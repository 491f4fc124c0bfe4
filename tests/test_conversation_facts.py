"""What is said of masks is held against them turn by turn, on the side and in the reading that is meant, and no further than is sure."""

import json
from typing import Any

import pytest

from unimed.data import conversation_facts
from unimed.data.conversation_facts import ConversationFacts
from unimed.data.wording import Classes

ABDOMEN = Classes(["liver", "spleen", "lung_left"])
TURN = {"question": "Segment the liver.", "answer": "<SEG>", "regions": [], "targets": [["m"]]}
NOTHING = {"question": "Segment the liver.", "answer": "There is none.", "regions": [], "targets": []}
MASK = {"turn": 0, "role": "target", "sample_id": "s", "class_name": "liver", "height": 100, "width": 200}
BOX = dict(zip(("left", "top", "right", "bottom"), (110, 60, 190, 90), strict=True))
ROW = {"row": 0, "conversation_id": "c", "sample_id": "s", "task": "grounding", "options": "", "solution": "", "rationale": ""} | {
    "sample_exists": True,
    "modality": "ct",
    "slice": "z_0001",
    "present": [],
}


def facts(*turns: dict[str, Any], masks: tuple[dict[str, Any], ...] = (), orientation: str = "", **values: Any) -> ConversationFacts:
    """The facts of a conversation of these turns that names these masks; `values` are others of its row."""
    row = ROW | {"turns": json.dumps(turns), "named": [MASK | BOX | mask for mask in masks]} | values
    return conversation_facts.facts(row, ABDOMEN, orientation)


def chosen(answer: str, solution: str, question: str = "Which modality is this?\nA) CT\nB) MRI") -> ConversationFacts:
    """The facts of a choice between two, of a CT image."""
    turn = {"question": question, "answer": answer, "regions": [], "targets": []}
    return facts(turn, task="reasoning", options='["CT", "MRI"]', solution=solution)


@pytest.mark.parametrize(("answer", "solution", "fits"), [("A", "A", True), ("B", "A", False), ("C", "C", False), ("", "", False)])
def test_a_solution_is_the_letter_of_an_option_and_the_answer(answer, solution, fits):
    assert chosen(answer, solution).solution_is_option is fits


@pytest.mark.parametrize(("letter", "agrees"), [("A", True), ("B", False)])
def test_a_letter_tells_the_modality_that_its_option_names(letter, agrees):
    assert chosen(letter, letter).modality_agrees is agrees


@pytest.mark.parametrize(("answer", "agrees"), [("Yes", True), ("No", False)])
def test_what_follows_the_first_line_of_a_question_is_no_part_of_it(answer, agrees):
    turn = NOTHING | {"question": "Is this a CT image?\nAnswer yes or no.", "answer": answer}
    assert facts(turn).modality_agrees is agrees


def test_an_answer_that_points_names_what_it_points_at_and_not_the_region_it_was_asked_about():
    told = {"question": "What is beside <region>?", "answer": "The liver.", "regions": ["r"]}
    spleen = {"role": "region", "class_name": "spleen"}
    assert not facts(NOTHING | told, masks=(spleen,)).region_class_agrees
    assert facts(TURN | told, masks=(spleen, {})).region_class_agrees


def test_a_turn_is_held_against_its_own_masks_alone():
    second = TURN | {"question": "Segment the spleen."}
    masks = {}, {"turn": 1, "class_name": "spleen"}
    assert facts(TURN, second, masks=masks).class_agrees
    assert not facts(second, TURN, masks=masks).class_agrees


@pytest.mark.parametrize(
    ("question", "present", "agrees"),
    [
        ("Segment the liver.", ["liver"], False),
        ("Segment the liver.", ["spleen"], True),
        ("Segment the liver or the spleen.", ["liver", "spleen"], True),  # as alternatives are refused when there are both
    ],
)
def test_a_refusal_is_held_against_what_is_there_where_it_is_of_one_class_alone(question, present, agrees):
    assert facts(NOTHING | {"question": question}, present=present).absent_is_absent is agrees


@pytest.mark.parametrize(("slice_", "known"), [("z_0001", True), ("y_0001", True), ("2d_none", True), ("x_0001", False)])
def test_a_sagittal_slice_has_no_left_and_right(slice_, known):
    left = {"class_name": "lung_left", "left": 0, "right": 20}
    assert facts(TURN, masks=(left,), orientation="radiological", slice=slice_).side_is_seen is not known


@pytest.mark.parametrize(
    ("left", "right", "radiological", "image"),
    [
        (0, 100, False, True),  # up to the middle of 200
        (100, 200, True, False),
        (99, 200, True, True),  # on both sides, if barely
        (0, 101, True, True),
        (0, 0, True, True),  # no pixels
    ],
)
def test_the_patients_left_is_on_the_right_in_radiological_orientation_and_a_mask_on_both_sides_is_on_none(
    left, right, radiological, image
):
    mask = {"class_name": "lung_left", "left": left, "right": right}
    for orientation, seen in (("radiological", radiological), ("image", image), ("", True)):
        assert facts(TURN, masks=(mask,), orientation=orientation).side_is_seen is seen


def test_thousandths_of_a_box_are_of_the_width_across_and_of_the_height_down():
    """The mask is 110 to 190 of 200 across and 60 to 90 of 100 down."""
    for box, holds in (("[500, 500, 1000, 1000]", True), ("[540, 590, 960, 910]", True), ("[600, 500, 1000, 1000]", False)):
        assert facts(TURN | {"answer": f"<SEG> {box}"}, masks=({},)).box_holds is holds


def test_all_that_is_said_is_looked_through_without_the_marks_that_belong_there():
    turn = TURN | {"question": "What is <region>, <SEG>?", "answer": "It is <SEG>, <region>."}
    assert facts(turn, TURN, rationale="Because.").text == "What is , <SEG>?\nSegment the liver.\nIt is , <region>.\n\nBecause."


def test_marks_are_counted_turn_by_turn():
    """A mark too many in one turn does not make up for one too few in another: masks would go to the marks of the other turn."""
    two, none = TURN | {"answer": "<SEG> <SEG>"}, TURN | {"answer": "Here."}
    said = (TURN, TURN), (two,), (none,), (TURN, two), (two, none)
    assert [facts(*turns).seg_unmatched for turns in said] == [0, 1, 1, 1, 2]
    one = NOTHING | {"question": "What is <region>?", "regions": ["r"]}
    two, none = one | {"question": "<region> and <region>?"}, one | {"question": "What is it?"}
    said = (one, one), (two,), (none,), (one, none), (none, two)
    assert [facts(*turns).region_unmatched for turns in said] == [0, 1, 1, 1, 2]
