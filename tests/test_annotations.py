"""Annotations of every kind that is read: MeCoVQA with its test files, captions, multiple choice in two dialects; and exclusions."""

import json
from pathlib import Path

import pytest
import raw_tree
from raw_tree import CAPTIONS, CHOICES, INDEX, STEMS, VQA, edit, mask_path, quarantine, said

from unimed.data import exclusions, export, ingest, raw, records
from unimed.data.tables import Tables
from unimed.errors import InputError

A, B = STEMS[0], STEMS[4]
TEST_FILES = {
    "MeCoVQA/test/MeCoVQA_Complex_VQA_test.json": "vqa",
    "MeCoVQA/test/MeCoVQA_Region_VQA_test.json": "region",
    "MeCoVQA/test/MeCoVQA_Grounding_test.json": "grounding",
    "MeCoVQA/zeroshot4grounding/xray.json": "grounding",
}


@pytest.fixture
def root(tmp_path):
    return raw_tree.write(tmp_path / "raw")


def manifest(out):
    return json.loads((out / "tables" / "manifest.json").read_text())


def put(root: Path, file: str, *rows: dict) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(rows))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("file", TEST_FILES)
def test_a_case_that_a_test_file_speaks_of_never_trains(root, tmp_path, file, seed):
    put(root, file, said(B, "held", "<image>\nIs there a liver?", "Yes"))
    out = raw_tree.ingested(root, tmp_path / "out", seed=seed)
    made = Tables.read(out / "tables")
    about = made.conversations.merge(made.samples, on="sample_id")
    of_case = about[(about["dataset"] == "SetB") & (about["case"] == "case_1")]
    assert set(of_case["split"]) == {"test"} and len(of_case) == 11
    [held] = about[about["conversation_id"] == f"{B}--held"].to_dict("records")
    assert (held["task"], held["source"]) == (TEST_FILES[file], Path(file).name)
    assert manifest(out)["held_out"] == {"cases": 1, "conversations": 1, "conversations_of_training_files": 10}


def test_a_held_out_record_whose_image_has_no_usable_name_holds_no_case_out(root, tmp_path):
    put(root, next(iter(TEST_FILES)), {**said(B, "held", "<image>\nIs there a liver?", "Yes"), "image": "images/unnamed.png"})
    out = raw_tree.ingested(root, tmp_path / "out")
    assert manifest(out)["held_out"] == {"cases": 0, "conversations": 0, "conversations_of_training_files": 0}
    assert f"{B}--held" in set(quarantine(out)["name"])


def test_the_other_cases_are_split_as_if_the_held_out_ones_were_not_there(root, tmp_path):
    for number, stem in enumerate(STEMS[2:]):
        put(root, f"MeCoVQA/zeroshot4grounding/{number}.json", said(stem, "held", "<image>\nIs there a liver?", "Yes"))
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out") / "tables").samples
    assert set(made["split"][made["sample_id"].isin(STEMS[:2])]) == {"train"}  # the one case that is left
    assert set(made["split"][made["sample_id"].isin(STEMS[2:])]) == {"test"}


def test_what_was_held_out_is_exported_where_it_came_from_and_stays_held_out(root, tmp_path):
    for file in TEST_FILES:
        put(root, file, said(B, Path(file).stem, "<image>\nIs there a liver?", "Yes"))
    out = raw_tree.ingested(root, tmp_path / "out")
    export.write(out / "tables", out / "shards", tmp_path / "exported")
    again = raw_tree.ingested(tmp_path / "exported", tmp_path / "again")
    for table in ("samples", "masks", "conversations"):
        assert (again / "tables" / f"{table}.parquet").read_bytes() == (out / "tables" / f"{table}.parquet").read_bytes()


@pytest.mark.parametrize(("task", "source"), [("vqa", "other.json"), ("grounding", "x.txt"), ("unknown", "MeCoVQA-Complex.json")])
def test_a_file_that_the_layout_has_no_place_for_is_refused(task, source):
    with pytest.raises(InputError, match=rf"{source}: expected the name of a file with annotations for '{task}'"):
        raw.place(task, source)


def test_captions_as_llava_med_writes_them_are_read(root, tmp_path):
    turns = said(A, "", "Describe.\n<image>", "CT.")["conversations"]
    put(root, CAPTIONS, {"id": 7, "image": f"images/{A}.png", "domain": {"ct_scan": True}, "conversatons": turns})
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out") / "tables").conversations
    [row] = made[made["task"] == "alignment"].to_dict("records")
    assert row["conversation_id"] == "7"
    assert json.loads(row["turns"]) == [{"question": "Describe.", "answer": "CT.", "regions": [], "targets": []}]


OMNIMED = {
    "dataset": "ACRIMA", "question_id": "ACRIMA_0000", "question_type": "Modality Recognition", "question": "What is shown?",
    "gt_answer": "An ultrasound.", "image_path": f"images/{A}.png", "option_A": "A CT.", "option_B": "An ultrasound.", "option_C": "An MR.",
    "modality_type": "CT",
}  # fmt: skip


def test_multiple_choice_as_omnimedvqa_writes_it_is_read(root, tmp_path):
    put(root, CHOICES, OMNIMED)
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out") / "tables").conversations
    [row] = made[made["task"] == "reasoning"].to_dict("records")
    assert (row["conversation_id"], row["solution"], row["question_type"]) == ("ACRIMA_0000", "B", "Modality Recognition")
    assert json.loads(row["options"]) == ["A CT.", "An ultrasound.", "An MR."]
    assert json.loads(row["turns"])[0]["question"] == "What is shown?\nA) A CT.\nB) An ultrasound.\nC) An MR."


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gt_answer": "A PET."}, "expected a solution among A, B, C, found 'A PET.'"),
        ({"option_B": ""}, "expected 2 to 26 different texts under 'options'"),
        ({"image_path": None}, "expected one image path under 'image', found none"),
    ],
)
def test_a_faulty_question_of_omnimedvqa_is_set_aside(root, tmp_path, change, reason):
    put(root, CHOICES, OMNIMED | change)
    rows = quarantine(raw_tree.ingested(root, tmp_path / "out"))
    assert reason in rows["reason"][rows["file"] == CHOICES].item()


LONG = "x" * (records.MOST_CHARACTERS + 1)
TEXTS = {
    "too long": (LONG, "expected texts of at most 65536 characters, found one of 65537"),
    "half a character": ("What is \ud83d?", "expected whole characters, found half of one (U+D83D)"),
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("where", ["question", "id", "image", "another key"])
def test_a_text_that_no_table_should_hold_is_set_aside(root, tmp_path, text, where):
    value, reason = TEXTS[text]

    def plant(rows):
        record = rows[0]
        if where == "question":
            record["conversations"][0]["value"] = value
        else:
            record[where] = value

    edit(root, VQA, plant)
    rows = quarantine(raw_tree.ingested(root, tmp_path / "out"))
    assert reason in rows["reason"][rows["kind"] == "conversation"].item()


def test_a_mask_path_with_half_a_character_is_a_mask_that_is_not_there(root, tmp_path):
    edit(root, INDEX, lambda index: index[f"images/{A}.png"].append(f"masks/{A}--0001_\ud83d.png"))
    rows = quarantine(raw_tree.ingested(root, tmp_path / "out"))
    assert "expected a file, found none" in rows["reason"][rows["kind"] == "mask"].item()


@pytest.mark.parametrize("file", [raw_tree.MAPPING, "provenance.json"])
def test_half_a_character_in_a_file_about_the_download_is_refused(root, tmp_path, file):
    (root / file).write_text('{"SetA": {"liver \\ud83d": 1}}')
    with pytest.raises(InputError, match=rf"{file}: expected whole characters, found half of one \(U\+D83D\)"):
        raw_tree.ingested(root, tmp_path / "out")


def test_an_image_that_the_index_has_twice_is_refused(root, tmp_path):
    text = (root / INDEX).read_text()
    (root / INDEX).write_text(f'{{"images/{A}.png": [],' + text[1:])
    with pytest.raises(InputError, match=rf"SAMed2D_v1\.json: expected every image once, found 'images/{A}\.png' more often"):
        raw_tree.ingested(root, tmp_path / "out")


def test_two_images_of_one_name_are_told_apart_and_the_first_kept(root, tmp_path):
    edit(root, VQA, lambda rows: rows[0].update(image=f"images/{A}.jpg"))
    rows = quarantine(raw_tree.ingested(root, tmp_path / "out"))
    told = f"images/{A}.png: expected a name of its own, found that of images/{A}.jpg"
    assert told in set(rows["reason"][rows["kind"] == "image"])


def test_a_mask_path_without_ending_names_the_mask(root, tmp_path):
    edit(root, INDEX, lambda index: index[f"images/{A}.png"].remove(mask_path(A, "kidney", 1)))
    path = mask_path(A, "kidney", 1).removesuffix(".png")
    answer = f"<SEG><mask>{path}</mask>"
    edit(root, raw_tree.GROUNDING, lambda rows: next(r for r in rows if r["id"] == f"{A}--g3")["conversations"][1].update(value=answer))
    assert len(quarantine(raw_tree.ingested(root, tmp_path / "out"))) == 0


def excluding(root: Path, out: Path, text: str) -> Path:
    (root / "exclusions.csv").write_text(text)
    excluded = exclusions.read(root / "exclusions.csv")
    ingest.write(root, out / "shards", out / "tables", seed=0, ingest=raw_tree.TOLERANT, excluded=excluded)
    return out


def test_an_excluded_case_is_not_packed_and_is_counted_with_its_reason(root, tmp_path):
    (root / "SAMed2Dv1" / "images" / f"{B}.png").write_bytes(b"nobody opens this")
    rows = "SetB,case_1,withdrew consent,2026-01-02\nSetC,case_1,of another download,2026-01-02\n"
    out = excluding(root, tmp_path / "out", f"dataset,case,reason,date\n{rows}")
    made = Tables.read(out / "tables")
    assert B not in set(made.samples["sample_id"]) and A in set(made.samples["sample_id"])  # case_1 of another data set stays
    assert len(made.samples) == 6 and len(quarantine(out)) == 0
    assert not any(B in table.read_bytes().decode("latin-1") for table in (out / "shards").iterdir())
    assert manifest(out)["excluded"] == {"withdrew consent": {"images": 1, "conversations": 10}}


def test_excluding_all_cases_leaves_nothing_to_train_on(root, tmp_path):
    rows = "".join(f"Set{name},case_{number},x,2026-01-02\n" for name in "AB" for number in (1, 2, 3))
    with pytest.raises(InputError, match="expected at least one usable conversation, found none"):
        excluding(root, tmp_path / "out", f"dataset,case,reason,date\n{rows}")
