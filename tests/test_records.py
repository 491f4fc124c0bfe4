"""A record and the files beside it, by hand: what is read of them, and each fault in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from unimed.data import raw, records
from unimed.data.origins import Origin
from unimed.data.records import MOST_CHARACTERS, Exchange
from unimed.errors import InputError


def said(human: str = "<image>\nWhat is it?", gpt: str = "A liver.", **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]
    return {"id": "one", "image": "images/a", "conversations": turns, **more}


def choice(**more: Any) -> dict[str, Any]:
    return {"image": ["images/a.png"], "question": "Which?", "options": ["ct", "mr"], "answer": "mr", **more}


def parsed(given: Any, task: str = "vqa") -> records.Record:
    return records.parse(given, task=task, file="folder/file.json", position=3)


def test_marks_stay_in_the_texts_and_paths_go_beside_them():
    record = parsed(said("<image>\nIs <region> masks/b.png </region> it?", " <SEG><mask>masks/c.png</mask> is. "))
    assert record.exchanges == (Exchange("Is <region> it?", "<SEG> is.", ("masks/b.png",), ("masks/c.png",)),)
    assert (record.conversation_id, record.image, record.source, record.where) == (
        "one",
        "images/a.png",
        "file.json",
        "folder/file.json, record 3",
    )


def test_a_record_without_an_id_gets_one_from_image_file_and_position_and_a_number_is_one():
    bare = said()
    del bare["id"]
    assert parsed(bare).conversation_id == "a--file--3"
    assert parsed(said(id=17)).conversation_id == "17"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected an object, found list"),
        (said(image=["images/a.png", "images/b.png"]), "expected one image path under 'image', found list"),
        (said(image=""), "expected one image path under 'image'"),
        (said(id=" "), "expected a text under 'id', found an empty one"),
        (said(answer_type="MAYBE"), "expected 'answer_type' OPEN or CLOSED, found 'MAYBE'"),
        (said(conversations=said()["conversations"][:1]), "pairs of human and gpt turns, found 1 turns"),
        (said(conversations=[]), "pairs of human and gpt turns, found 0 turns"),
        (said(conversations=said()["conversations"][::-1]), "expected a turn with 'from' 'human'"),
        (said("<image>\n"), "expected a question, found an empty one"),
        (said(gpt=" "), "expected an answer, found an empty one"),
        (said(gpt="<SEG> and <SEG><mask>masks/c.png</mask>"), "expected one <SEG> for each <mask> of the answer, found 2 and 1"),
        (said(gpt="There: <mask>masks/c.png</mask>"), "expected one <SEG> for each <mask> of the answer, found 0 and 1"),
        (said("<region> here and <region>masks/b.png</region>?"), "expected a mask path in every <region>, found 2 marks and 1 paths"),
        (said("x" * (MOST_CHARACTERS + 1)), f"expected texts of at most {MOST_CHARACTERS} characters, found one of {MOST_CHARACTERS + 1}"),
        (said(**{"x" * (MOST_CHARACTERS + 1): 1}), "expected texts of at most"),
        (said(more={"deep": ["\ud800"]}), r"expected whole characters, found half of one \(U\+D800\)"),
    ],
)
def test_a_fault_of_a_conversation_is_told_with_its_place(given, message):
    with pytest.raises(InputError, match=rf"^folder/file\.json, record 3: .*{message}"):
        parsed(given)


def test_a_text_as_long_as_it_may_be_is_read():
    assert parsed(said("x" * MOST_CHARACTERS)).exchanges[0].question == "x" * MOST_CHARACTERS


@pytest.mark.parametrize(
    ("given", "solution"),
    [({}, "B"), ({"solution": "B"}, "B"), ({"solution": "<answer> A </answer>", "answer": "ct"}, "A")],
)
def test_the_letter_of_the_right_option_is_found(given, solution):
    record = parsed(choice(**given), "reasoning")
    assert (record.solution, record.options) == (solution, ("ct", "mr"))
    assert record.exchanges == (Exchange("Which?\nA) ct\nB) mr", solution),)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": ["ct", "ct"], "answer": "ct"}, "expected 2 to 26 different texts"),
        ({"options": ["ct"], "answer": "ct"}, "expected 2 to 26 different texts"),
        ({"options": [str(number) for number in range(27)], "answer": "1"}, "expected 2 to 26 different texts"),
        ({"options": ["ct", " "], "answer": "ct"}, "expected 2 to 26 different texts"),
        ({"answer": "pet"}, "expected a solution among A, B, found 'pet'"),
        ({"solution": "C"}, "expected a solution among A, B, found 'C'"),
        ({"solution": "either"}, "expected a solution among A, B, found 'either'"),
        ({"solution": "A"}, "expected solution A to be the answer 'mr', found option 'ct'"),
    ],
)
def test_a_fault_of_a_choice_is_told_with_its_place(given, message):
    with pytest.raises(InputError, match=rf"^folder/file\.json, record 3: {message}"):
        parsed(choice(**given), "reasoning")


@pytest.mark.parametrize(
    ("given", "task"), [(said(gpt="<SEG><mask>masks/c.png</mask>", dataset="A"), "grounding"), (choice(), "reasoning")]
)
def test_a_record_comes_back_from_its_text(given, task):
    record = parsed(given, task)
    assert records.from_text(records.as_text(record)) == record


def written(file: Path, value: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))
    return file


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (lambda file: list(raw.index(file)), {"images/a.png": "masks/a.png"}, "expected a list of mask paths under 'images/a.png'"),
        (lambda file: list(raw.index(file)), {"images/a.png": [1]}, "expected a list of mask paths under 'images/a.png'"),
        (raw.classes, {"A": ["liver"]}, "expected class names with whole numbers under 'A'"),
        (raw.classes, {"A": {"liver": "1"}}, "expected class names with whole numbers under 'A'"),
        (raw.classes, [], "expected an object, found list"),
        (raw.provenance, {"licences": ["CC0"]}, "expected licences by data set"),
        (raw.provenance, {"licences": {"A": 1}}, "expected licences by data set"),
    ],
)
def test_a_file_about_the_download_of_another_form_is_refused(tmp_path, read, value, message):
    with pytest.raises(InputError, match=message):
        read(written(tmp_path / "file.json", value))


def test_an_index_and_classes_are_read_as_they_are(tmp_path):
    index = {"images/a.png": ["masks/b.png"], "images/\ud800.png": []}
    assert list(raw.index(written(tmp_path / "index.json", index))) == [("images/a.png", ["masks/b.png"]), ("images/?.png", [])]
    assert raw.classes(written(tmp_path / "classes.json", {"A": {"liver": 1}})) == {"A": {1: "liver"}}
    assert raw.provenance(tmp_path / "none.json") == {}


@pytest.fixture
def root(tmp_path) -> Path:
    """One file of annotations of each task that must be there."""
    for file in (
        "alignment/a.json",
        "reasoning/r.json",
        *(f"MeCoVQA/train/MeCoVQA-{kind}.json" for kind in ("Complex", "Region", "Grounding")),
    ):
        written(tmp_path / file, [choice() if file.startswith("reasoning") else said(dataset="Own")])
    return tmp_path


def test_files_are_read_in_their_order_and_what_records_say_wins_over_what_is_declared_for_their_file(root):
    written(root / "provenance.json", {"images": {"alignment/a.json": {"dataset": "Theirs", "modality": "ct"}}})
    found = list(raw.annotated(root))
    assert [record.task for record, _ in found] == ["alignment", "vqa", "region", "grounding", "reasoning"]
    assert not any(is_held_out for _, is_held_out in found)
    assert found[0][0].origin == Origin("Own", "ct")


def test_what_is_held_out_may_be_absent_and_what_trains_may_not(root):
    written(root / "MeCoVQA/test/MeCoVQA_Region_VQA_test.json", [said()])
    assert [is_held_out for _, is_held_out in raw.annotated(root)] == [False] * 5 + [True]
    (root / "reasoning/r.json").unlink()
    with pytest.raises(InputError, match="expected annotations for 'reasoning', found no such file"):
        list(raw.annotated(root))


def test_a_declaration_for_a_file_that_is_not_there_is_refused(root):
    written(root / "provenance.json", {"images": {"alignment/b.json": {"dataset": "Theirs"}}})
    with pytest.raises(InputError, match="expected files with annotations under 'images', found 'alignment/b.json'"):
        list(raw.annotated(root))
