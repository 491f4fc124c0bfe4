"""Audits find what gives answers away, and nothing where nothing does."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unimed import cli
from unimed.data import audit, audit_files
from unimed.data.audit import Closed, Item
from unimed.errors import InputError
from unimed.eval.baselines import Asked

WORDS = [f"word{number}" for number in range(40)]


def fair(count: int, seed: int = 0) -> list[Item]:
    """Items whose four options are drawn alike: nothing but the image could tell which is right."""
    rng = np.random.default_rng(seed)
    return [
        Item(
            f"Question {number % 5}?",
            tuple(rng.choice(WORDS, 4, replace=False).tolist()),
            int(rng.integers(4)),
            f"group {number // 2}",
            f"images/{number}.png",
        )
        for number in range(count)
    ]


def scores(items: list[Item]) -> dict[str, audit.Row]:
    return {row.name.partition(":")[0]: row for row in audit.multiple_choice(items)}


def test_items_that_give_nothing_away_score_chance():
    for row in scores(fair(600)).values():
        assert row.chance == 0.25 and row.n == 600
        assert row.low - 0.02 < 0.25 < row.high + 0.02, row


def test_a_letter_that_is_mostly_right_is_found():
    items = [Item("Which?", ("a", "b", "c", "d"), 0 if number % 10 else 1, f"group {number}") for number in range(100)]
    assert scores(items)["most frequent letter"].score == pytest.approx(0.9)


def test_distractors_that_are_never_right_are_found():
    """As where a machine made them up: the right options come from a few words, the wrong ones from others."""
    rng = np.random.default_rng(0)
    items = []
    for number in range(200):
        options = [str(rng.choice(WORDS[:5])), *rng.choice(WORDS[5:], 3, replace=False).tolist()]
        order = rng.permutation(4)
        items.append(Item("Which?", tuple(options[place] for place in order), int(np.flatnonzero(order == 0)[0]), f"group {number}"))
    found = scores(items)
    assert found["answer vocabulary"].score > 0.99 and found["blind"].score > 0.99
    assert found["most frequent letter"].score < 0.4


def test_a_question_that_has_one_answer_is_found_by_the_blind_audit_alone():
    rng = np.random.default_rng(0)
    items = []
    for number in range(400):
        right = number % 4
        options = rng.permutation(4).tolist()
        items.append(Item(f"Kind {right}?", tuple(f"answer{one}" for one in options), options.index(right), f"group {number}"))
    found = scores(items)
    assert found["blind"].score > 0.98
    assert found["answer vocabulary"].score < 0.4 and found["most frequent letter"].score < 0.4


def test_items_of_one_patient_do_not_answer_each_other():
    """Every group has a right answer of its own, twice: known from its twin, from no other."""
    items = [Item("Which?", (f"own {number // 2}", "other"), number // 2 % 2 * 0, f"group {number // 2}") for number in range(100)]
    mixed = [item if number // 2 % 2 else Item(item.question, item.options[::-1], 1, item.group) for number, item in enumerate(items)]
    assert scores(mixed)["most frequent letter"].score <= 0.5
    one_group = [Item("Which?", ("a", "b"), 1, "the only group") for _ in range(10)]
    assert scores(one_group)["blind"].score == 0.5, "nothing is learnt from one's own group"


def test_a_file_name_that_holds_the_answer_is_found():
    items = [
        Item("Which?", ("fracture", "normal"), number % 2, f"group {number}", f"images/{('fracture', 'normal')[number % 2]}/{number}.png")
        for number in range(20)
    ]
    assert scores(items)["file name"].score == 1.0


def test_what_is_also_in_training_is_counted():
    known = [Item("Which?", ("a", "b"), 0, "k", "images/1.png", known=True), Item("Else?", ("a", "b"), 0, "l", known=True)]
    asked = [Item("which", ("B", "a"), 0, "m", "images/1.png"), Item("Which?", ("a", "c"), 0, "n", "images/2.png")]
    found = {row.name: row for row in audit.multiple_choice([*known, *asked])}
    assert found["question with its options also in training"].score == 0.5, "whatever their order and letters"
    assert found["image also in training"].score == 0.5
    assert audit.multiple_choice(known) == []


def test_closed_questions_are_answered_by_the_training_answers():
    def one(question: str, answer: str, known: bool, group: str) -> Closed:
        return Closed(Asked(question, answer), group, known)

    train = [one("Is it A?", "Yes", True, "1"), one("Is it B?", "No", True, "2"), one("Is it C?", "No", True, "3")]
    test = [
        one("Is it A?", "Yes", False, "4"),
        one("Is it B?", "No", False, "5"),
        one("Is it B?", "Yes", False, "6"),
        one("Is it Z?", "No", False, "7"),
    ]
    [row] = audit.closed([*train, *test])
    assert (row.score, row.chance, row.n) == (0.75, 0.5, 4)
    assert audit.closed(test) == [] and audit.closed(train) == []


RECORD = {
    "image": ["images/a.png"],
    "question": "Which?",
    "options": ["ct", "mr"],
    "problem": "Which?\nA) ct\nB) mr",
    "solution": "A",
    "answer": "ct",
}


def test_all_forms_of_a_file_hold_the_same_items(tmp_path):
    bare = {key: RECORD[key] for key in ("image", "problem")} | {"solution": "<answer> A </answer>"}
    inline = bare | {"problem": "Which? A) ct, B) mr"}
    for name, text in {
        "list.json": json.dumps([RECORD]),
        "lines.jsonl": f"{json.dumps(RECORD)}\n\n{json.dumps(RECORD)}\n",
        "bare.json": json.dumps([bare]),
        "inline.json": json.dumps([inline]),
        "one.jsonl": json.dumps(RECORD),
    }.items():
        (tmp_path / name).write_text(text)
        read = audit_files.read(tmp_path / name)
        assert set(read.items) == {Item("Which?", ("ct", "mr"), 0, "images/a.png", "images/a.png")} and not read.faults, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON, found an error in line 1, column 2"),
        ("[]", "expected at least one multiple-choice record, found an empty list"),
        ('{"a": 1}', "expected a list of records or JSON lines, found dict"),
        ("3", "expected a list of records or JSON lines, found int"),
        ('["x"]', "expected at least one multiple-choice record, found file.json, record 0: expected an object, found str"),
        ('[{"image": "a", "problem": "Which?", "solution": "A"}]', "expected 2 to 26 different texts under 'options'"),
        ('{"a": 1}\n{"b": 2}\n{', "expected a JSON value on every line, found other text in line 3"),
        ("\udcff", "expected JSON in UTF-8"),
        ("[" * 100_000, "expected JSON with few levels"),
    ],
)
def test_a_malformed_file_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "file.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as error:
        audit_files.read(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_faulty_record_among_good_ones_is_told_and_left_out(tmp_path):
    (tmp_path / "file.json").write_text(json.dumps([RECORD, RECORD | {"solution": "Z"}]))
    read = audit_files.read(tmp_path / "file.json")
    assert len(read.items) == 1
    assert read.faults == ("file.json, record 1: expected a solution among A, B, found 'Z'",)


def test_images_that_are_there_are_counted_and_no_path_leads_outside(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (4, 4)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    items = [Item("?", ("a", "b"), 0, name, name) for name in ("images/a.png", "a.png", "b.png", "c.png", "../secret.png")]
    assert audit_files.pictures(items, folder) == {"named": 5, "there": 3, "decode": 2}


def test_the_command_prints_a_table_or_an_object(tmp_path):
    file, train = tmp_path / "file.json", tmp_path / "train.json"
    file.write_text(json.dumps([RECORD, RECORD | {"image": "b.png"}]))
    train.write_text(json.dumps([RECORD | {"image": "c.png"}]))
    shown = CliRunner().invoke(cli.app, ["data", "audit", str(file), "--train", str(train), "--images", str(tmp_path)])
    assert shown.exit_code == 0 and "2 items of 2 images; 0 records unreadable" in shown.stdout
    assert "images: 2 named, 0 there, 0 decode" in shown.stdout
    assert "question with its options also in training" in shown.stdout
    told = json.loads(CliRunner().invoke(cli.app, ["data", "audit", str(file), "--json"]).stdout)
    assert told["items"] == 2 and told["unreadable"] == [] and {row["n"] for row in told["audits"]} == {2}
