"""Every fault that a download can have: set aside with a sentence that names file, expected and found, or the end of the stage."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import raw_tree
from PIL import Image
from raw_tree import CAPTIONS, CHOICES, GROUNDING, INDEX, MAPPING, REGION, STEMS, VQA, edit, mask_path, quarantine, said

from unimed.data import tables
from unimed.data.tables import Tables
from unimed.errors import InputError

A = STEMS[0]
LIVER, KIDNEY_1 = mask_path(A, "liver", 0), mask_path(A, "kidney", 1)


@pytest.fixture
def root(tmp_path):
    return raw_tree.write(tmp_path / "raw")


def image_file(root):
    return root / "SAMed2Dv1" / "images" / f"{A}.png"


def mask_file(root, path=LIVER):
    return root / "SAMed2Dv1" / path


def save_mask(root, pixels):
    Image.fromarray(pixels.astype(np.uint8)).save(mask_file(root))


def link_away(root):
    image_file(root).rename(root / "secret.png")
    image_file(root).symlink_to(root / "secret.png")


def change(file, key, **values):
    """Plant values into the record of image A with this id ending."""
    return lambda root: edit(root, file, lambda records: next(r for r in records if r.get("id") == f"{A}--{key}").update(values))


def answer(text):
    return change(GROUNDING, "g1", conversations=said(A, "g1", "<image>\nSegment the liver.", text)["conversations"])


def question(text):
    return change(REGION, "r1", conversations=said(A, "r1", text, "The liver.")["conversations"])


def first_choice(**values):
    return lambda root: edit(root, CHOICES, lambda records: records[0].update(values))


SHAPE = raw_tree.size(A)
G1, R1, M = f"{A}--g1", f"{A}--r1", f"{A}--m"
IMAGES = {
    "missing": (lambda root: image_file(root).unlink(), A, "expected a file, found none"),
    "truncated": (lambda root: image_file(root).write_bytes(image_file(root).read_bytes()[:90]), A, "expected a whole PNG"),
    "text": (lambda root: image_file(root).write_bytes(b"text"), A, "expected a PNG or JPEG, found bytes of neither"),
    "huge": (lambda root: Image.new("L", (200, 100)).save(image_file(root)), A, "expected at most 10000 pixels, found 200 x 100"),
    "linked to outside": (lambda root: link_away(root), A, "expected a path inside SAMed2Dv1, found one that leads outside"),
    "path to outside": (change(VQA, "m", image="../../secret.png"), "../../secret.png", "expected a path images/<name>.png, found"),
    "name of another grammar": (change(VQA, "m", image="images/scan.png"), "images/scan.png", "expected <modality>--<dataset>--"),
}
MASKS = {
    "missing": (lambda root: mask_file(root).unlink(), "expected a file, found none"),
    "another size": (
        lambda root: save_mask(root, np.full((5, 6), 255)),
        "expected 20 x 30 pixels (height x width) like its image, found 5 x 6",
    ),
    "empty": (lambda root: save_mask(root, np.zeros(SHAPE)), "expected at least one foreground pixel, found an empty mask"),
    "other values": (
        lambda root: save_mask(root, np.arange(600).reshape(SHAPE)),
        "expected values 0 and 1, or 0 and 255, found 0, 1, 2, 3, 4",
    ),
    "unknown class": (
        lambda root: edit(root, MAPPING, lambda mapping: mapping["SetA"].update(liver=9)),
        "expected a class id that the mapping has for SetA (2, 9), found 1",
    ),
}
CONVERSATIONS = {
    "mask path to outside": (answer("<SEG><mask>masks/../../secret.png</mask>"), G1, "expected a path masks/<name>.png or"),
    "mask of another image": (
        answer(f"<SEG><mask>{mask_path(STEMS[2], 'liver', 0)}</mask>"),
        G1,
        f"expected a mask of {A}, found masks/{STEMS[2]}",
    ),
    "mask of no instance": (answer(f"<SEG><mask>masks_merged/{A}--0009_merged.png</mask>"), G1, "expected masks of class 9 that make up"),
    "region that is not there": (question(f"What is <region>masks/{A}--0001_007.png</region>?"), R1, "expected a usable mask"),
    "region without a path": (question("What is <region>?"), R1, "expected a mask path in every <region>, found 1 marks and 0 paths"),
    "mask without SEG": (answer(f"Here: <mask>{LIVER}</mask>"), G1, "expected one <SEG> for each <mask> of the answer, found 0 and 1"),
    "SEG without mask": (answer("<SEG> and <SEG>"), G1, "expected one <SEG> for each <mask> of the answer, found 2 and 0"),
    "empty question": (question("<image>\n "), R1, "expected a question, found an empty one"),
    "empty answer": (answer("  "), G1, "expected an answer, found an empty one"),
    "id used twice": (change(VQA, "m", id=f"{A}--d"), f"{A}--d", f"expected an id of its own, found '{A}--d' as in {VQA}, record 0"),
    "turns not in pairs": (change(VQA, "m", conversations=[]), M, "expected 'conversations' with pairs of human and gpt turns, found 0"),
    "wrong speaker": (change(VQA, "m", conversations=[{"from": "gpt", "value": "x"}] * 2), M, "expected a turn with 'from' 'human'"),
    "two images": (change(VQA, "m", image=["a", "b"]), M, "expected one image path under 'image', found list"),
    "unknown answer type": (change(VQA, "m", answer_type="MAYBE"), M, "expected 'answer_type' OPEN or CLOSED, found 'MAYBE'"),
    "no object": (lambda root: edit(root, VQA, lambda rows: rows.insert(0, "x")), "record 0", "expected an object, found str"),
    "letter without an option": (first_choice(solution="D"), "record 0", "expected a solution among A, B, C, found 'D'"),
    "letter of another answer": (first_choice(solution="B"), "record 0", "expected solution B to be the answer 'ct', found option 'mr'"),
    "one option": (first_choice(options=["ct"]), "record 0", "expected 2 to 26 different texts under 'options', found"),
}
FAULTS = [
    *(pytest.param(plant, "image", name, reason, id=f"image {fault}") for fault, (plant, name, reason) in IMAGES.items()),
    *(pytest.param(plant, "mask", LIVER, reason, id=f"mask {fault}") for fault, (plant, reason) in MASKS.items()),
    *(pytest.param(plant, "conversation", name, reason, id=fault) for fault, (plant, name, reason) in CONVERSATIONS.items()),
]


@pytest.mark.parametrize(("plant", "kind", "name", "reason"), FAULTS)
def test_a_fault_is_set_aside_with_file_expected_and_found(root, tmp_path, plant, kind, name, reason):
    plant(root)
    out = raw_tree.ingested(root, tmp_path / "out")
    rows = quarantine(out)
    told = rows[(rows["kind"] == kind) & rows["name"].isin([name, Path(name).stem])]
    assert len(told) == 1, rows.to_string()
    row = told.iloc[0]
    assert reason in row["reason"] and "found" in row["reason"]
    assert row["reason"].startswith(row["file"]) and "\n" not in row["reason"]


def test_what_depends_on_a_missing_image_is_set_aside_too(root, tmp_path):
    image_file(root).unlink()
    out = raw_tree.ingested(root, tmp_path / "out")
    made, rows = Tables.read(out / "tables"), quarantine(out)
    assert all(A not in set(frame["sample_id"]) for frame in (made.samples, made.masks, made.conversations))
    assert tables.tally(rows["kind"]) == {"conversation": 10, "image": 1, "mask": 3}
    assert all("quarantined" in reason for reason in rows["reason"][rows["kind"] != "image"])


def test_what_depends_on_a_faulty_mask_is_set_aside_and_nothing_else(root, tmp_path):
    mask_file(root, KIDNEY_1).unlink()
    rows = quarantine(raw_tree.ingested(root, tmp_path / "out"))
    assert sorted(rows["name"]) == [f"{A}--0002_001", f"{A}--g2", f"{A}--g3", f"{A}--r2"]


def test_too_many_faults_end_the_stage_with_counts_and_the_first_offenders(root, tmp_path):
    mask_file(root).unlink()
    with pytest.raises(InputError) as error:
        raw_tree.ingested(root, tmp_path / "out", raw_tree.TOLERANT.model_copy(update={"max_bad_fraction": 0.05}))
    assert f"expected at most 5.0% faulty items of a kind, found 1 of 18 masks ({LIVER}: expected a file, found none)" in str(error.value)
    assert f"and 4 of 65 conversations ({REGION}, record 0: expected a usable mask" in str(error.value)


@pytest.mark.parametrize(("one_in", "passes"), [(65, True), (66, False)])
def test_the_share_of_faults_is_one_of_all_items_of_a_kind_and_may_be_reached(root, tmp_path, one_in, passes):
    """One of 65 conversations is faulty."""
    change(VQA, "m", conversations=[])(root)
    bound = raw_tree.TOLERANT.model_copy(update={"max_bad_fraction": 1 / one_in})
    with nullcontext() if passes else pytest.raises(InputError, match="found 1 of 65 conversations"):
        raw_tree.ingested(root, tmp_path / "out", bound)


@pytest.mark.parametrize("missing", [INDEX, MAPPING, VQA, CAPTIONS, CHOICES, "SAMed2Dv1/images", "SAMed2Dv1/masks"])
def test_a_missing_part_of_the_layout_is_named(root, tmp_path, missing):
    (root / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"{Path(missing).parent}.*: expected .*, found .*(none|no such file)|No such file"):
        raw_tree.ingested(root, tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (VQA, '[{"id": 1},\n {"id" 2}]', "expected JSON, found an error in line 2, column 8"),
        (INDEX, "[]", "expected an object, found list"),
        (INDEX, '{"images/a.png": "masks/a.png"}', "expected a list of mask paths under 'images/a.png', found"),
        (MAPPING, '{"SetA": {"liver": "one"}}', "expected class names with whole numbers under 'SetA', found"),
        (CHOICES, "{}", "expected a list of records, found dict"),
        (GROUNDING, "[" * 100_000, "expected JSON with few levels, found too many"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_line_and_column(root, tmp_path, file, text, message):
    (root / file).write_text(text)
    with pytest.raises(InputError) as error:
        raw_tree.ingested(root, tmp_path / "out")
    assert file in str(error.value) and message in str(error.value)
