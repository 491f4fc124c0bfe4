"""Images that do not bear SA-Med2D's names go in under names made of what their records or the download say, and nothing is guessed."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import raw_tree
from PIL import Image
from raw_tree import CAPTIONS, CHOICES, STEMS, edit, quarantine

from unimed.data import contract, export, names, origins, tables
from unimed.data.origins import Origin
from unimed.data.tables import Tables
from unimed.errors import InputError

FIGURE, SCAN, KNEE = "1234_fig2.jpg", "Images/Chest CT Scan/xyz.png", "images/knee031316.png"
CAPTION = {
    "id": "1234_fig2", "image": FIGURE, "domain": {"chest_xray": False, "mri": False, "histology": True, "gross": False, "ct_scan": False},
    "conversatons": [{"from": "human", "value": "Describe.\n<image>"}, {"from": "gpt", "value": "Cells of a liver."}],
}  # fmt: skip
OMNIMED = {
    "dataset": "Chest CT Scan", "question_id": "Chest CT Scan_0001", "question_type": "Modality Recognition",
    "question": "What imaging technique was used?", "gt_answer": "CT", "image_path": SCAN, "option_A": "CT", "option_B": "MRI",
    "option_C": "PET", "option_D": "Ultrasound", "modality_type": "CT(Computed Tomography)",
}  # fmt: skip
MEDVLM = {
    "image": [KNEE], "problem": "What is seen?\nA) effusion\nB) tear", "solution": "B", "question": "What is seen?",
    "options": ["effusion", "tear"], "answer": "tear", "dataset": "OmniMedVQA", "subset": "MR (Mag-netic Resonance Imaging)",
}  # fmt: skip
DECLARED = {"alignment/alignment.json": {"dataset": "PMC"}}
STRICT = raw_tree.TOLERANT.model_copy(update={"max_bad_fraction": 0})


def digest(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:12]


NAMED = {
    FIGURE: f"microscopy--PMC--1234_fig2-{digest(FIGURE)}--2d_none",
    SCAN: f"ct--Chest_CT_Scan--xyz-{digest(SCAN)}--2d_none",
    KNEE: f"mr--OmniMedVQA--knee031316-{digest(KNEE)}--2d_none",
}


def picture(place: Path, seed: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 31), dtype=np.uint8)).save(place)


def say(root: Path, images: object) -> None:
    (root / "provenance.json").write_text(json.dumps({"licences": {"PMC": "CC-BY-4.0"}, "images": images}))


@pytest.fixture
def root(tmp_path):
    """A download with an image of LLaVA-Med's, one of OmniMedVQA's and one of MedVLM-R1's."""
    root = raw_tree.write(tmp_path / "raw")
    for seed, path in enumerate(NAMED):
        picture(root / "SAMed2Dv1" / path, seed)
    edit(root, CAPTIONS, lambda records: [*records, CAPTION])
    edit(root, CHOICES, lambda records: [*records, OMNIMED, MEDVLM])
    say(root, DECLARED)
    return root


def test_each_goes_in_under_a_name_that_says_what_is_known(root, tmp_path):
    out = raw_tree.ingested(root, tmp_path / "out", STRICT)
    made = Tables.read(out / "tables")
    rows = made.samples.set_index("sample_id")
    assert set(rows.index) == {*STEMS, *NAMED.values()}
    told = {path: tuple(rows.loc[stem, ["modality", "dataset", "case", "slice", "licence"]]) for path, stem in NAMED.items()}
    assert told == {
        FIGURE: ("microscopy", "PMC", f"1234_fig2-{digest(FIGURE)}", "2d_none", "CC-BY-4.0"),
        SCAN: ("ct", "Chest_CT_Scan", f"xyz-{digest(SCAN)}", "2d_none", "unknown"),
        KNEE: ("mr", "OmniMedVQA", f"knee031316-{digest(KNEE)}", "2d_none", "unknown"),
    }
    asked = made.conversations.set_index("sample_id").loc[list(NAMED.values())]
    assert [json.loads(turns)[0]["answer"] for turns in asked["turns"]] == ["Cells of a liver.", "A", "B"]
    assert rows.loc[NAMED[FIGURE], "sha256"] == hashlib.sha256((root / "SAMed2Dv1" / FIGURE).read_bytes()).hexdigest()


def test_they_keep_the_contract(root, tmp_path):
    out = raw_tree.ingested(root, tmp_path / "out", STRICT)
    for task in ("alignment", "reasoning"):
        contract.write(raw_tree.chosen(out, task), out / "shards", tmp_path / task, raw_tree.BOUNDS)
        verdict = json.loads((tmp_path / task / "verdict.json").read_text())
        assert {one["name"] for one in verdict["expectations"] if one["failed"]} == {"licence_known"}
        assert set(Tables.read(tmp_path / task).samples["sample_id"]) & set(NAMED.values())


def test_what_is_exported_goes_in_again_without_a_word_about_origins(root, tmp_path):
    out = raw_tree.ingested(root, tmp_path / "out", STRICT)
    export.write(out / "tables", out / "shards", tmp_path / "exported")
    again = raw_tree.ingested(tmp_path / "exported", tmp_path / "again", STRICT)
    before, after = Tables.read(out / "tables"), Tables.read(again / "tables")
    assert before.conversations.to_dict("records") == after.conversations.to_dict("records")
    columns = [name for name in tables.SAMPLES.names if name not in ("shard", "offset", "split")]
    assert before.samples[columns].to_dict("records") == after.samples[columns].to_dict("records")


def test_a_flat_export_holds_their_pixels_under_the_names_it_tells(root, tmp_path):
    out = raw_tree.ingested(root, tmp_path / "out", STRICT)
    export.write(raw_tree.chosen(out, "reasoning"), out / "shards", tmp_path / "flat", export.FLAT)
    records = json.loads((tmp_path / "flat" / "reasoning.json").read_text())
    [image] = next(record["image"] for record in records if record["id"] == OMNIMED["question_id"])
    assert image == f"images/{NAMED[SCAN]}.png"
    assert (tmp_path / "flat" / image).read_bytes() == (root / "SAMed2Dv1" / SCAN).read_bytes()


@pytest.mark.parametrize(
    ("raw", "origin"),
    [
        ({"modality_type": "CT(Computed Tomography)", "dataset": "A"}, Origin("A", "ct")),
        ({"modality_type": "OCT (Optical Coherence Tomography"}, Origin("", "oct")),
        ({"modality_type": "Fundus Photography"}, Origin("", "fundus")),
        ({"modality_type": "Microscopy Images"}, Origin("", "microscopy")),
        ({"subset": "X-Ray"}, Origin("", "x_ray")),
        ({"modality_type": "Infrared Reflectance Imaging"}, Origin("", "Infrared Reflectance Imaging")),
        ({"domain": {"chest_xray": True, "mri": False}}, Origin("", "x_ray")),
        ({"domain": {"gross": True}}, Origin("", "gross")),
        ({"domain": {"ct_scan": True, "mri": True}}, Origin()),
        ({"domain": ["ct_scan"], "dataset": 3, "subset": 4}, Origin()),
    ],
)
def test_what_records_say_is_read_in_their_words(raw, origin):
    assert origins.said(raw) == origin


def planted(root: Path, values: dict, images: object = DECLARED) -> None:
    """Change LLaVA-Med's record and what is declared."""
    edit(root, CAPTIONS, lambda records: records[-1].update(values))
    say(root, images)


@pytest.mark.parametrize(
    ("values", "images", "reason"),
    [
        ({}, {}, "and no dataset in its record or for alignment/alignment.json under 'images' in provenance.json"),
        ({"domain": {}}, {}, "and no dataset and no modality in its record or for alignment/alignment.json"),
        ({"domain": {}}, DECLARED, "and no modality in its record"),
        ({"domain": {"gross": True}}, {"alignment/alignment.json": {"dataset": "P", "modality": "ct"}}, "expected a modality among ct, "),
        ({"image": "images/ct_00--A--c--z_1x.png"}, DECLARED, "expected <modality>--<dataset>--<case>--<axis>_<slice>, found"),
        ({"image": "../1234_fig2.jpg"}, DECLARED, "expected a path images/<name>.png, found"),
        ({"image": "Images/../1234_fig2.jpg"}, DECLARED, "expected a path images/<name>.png, found"),
        ({"image": "/etc/1234_fig2.jpg"}, DECLARED, "expected a path images/<name>.png, found"),
        ({"image": "Images\\1234_fig2.jpg"}, DECLARED, "expected a path images/<name>.png, found"),
        ({"image": "1234\x1b_fig2.jpg"}, DECLARED, "expected a path images/<name>.png, found"),
        ({"image": "absent.jpg"}, DECLARED, "absent.jpg: expected a file, found none"),
        ({"dataset": "x" * 200}, DECLARED, "expected a data set with a short name"),
        ({"dataset": "--"}, DECLARED, "expected <modality>--<dataset>--"),
    ],
)
def test_what_is_not_known_or_leads_outside_is_set_aside_with_a_sentence(root, tmp_path, values, images, reason):
    planted(root, values, images)
    out = raw_tree.ingested(root, tmp_path / "out")
    rows = quarantine(out)
    assert sorted(rows["kind"]) == ["conversation", "image"]
    assert reason in rows["reason"][rows["kind"] == "image"].item()
    assert NAMED[FIGURE] not in set(Tables.read(out / "tables").samples["sample_id"])


def test_links_are_followed_nowhere_outside(root, tmp_path):
    (tmp_path / "secret.jpg").write_bytes((root / "SAMed2Dv1" / FIGURE).read_bytes())
    (root / "SAMed2Dv1" / FIGURE).unlink()
    (root / "SAMed2Dv1" / FIGURE).symlink_to(tmp_path / "secret.jpg")
    rows = quarantine(raw_tree.ingested(root, tmp_path / "out"))
    assert "expected a path inside SAMed2Dv1, found one that leads outside" in rows["reason"][rows["kind"] == "image"].item()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["PMC"], "expected 'images' by file with annotations, found"),
        ({"alignment/other.json": {"dataset": "PMC"}}, "expected files with annotations under 'images', found 'alignment/other.json'"),
        (
            {"alignment/alignment.json": "PMC"},
            "expected 'dataset' and 'modality' .* of the images of 'alignment/alignment.json', found 'PMC'",
        ),
        ({"alignment/alignment.json": {"dataset": 1}}, "expected 'dataset' and 'modality'"),
        ({"alignment/alignment.json": {"dataset": "PMC", "modality": "sonar"}}, "expected 'dataset' and 'modality' .ct, .*found"),
        ({"alignment/alignment.json": {"dataset": "PMC", "case": "x"}}, "expected 'dataset' and 'modality'"),
    ],
)
def test_a_declaration_of_another_form_ends_the_ingest(root, tmp_path, images, message):
    say(root, images)
    with pytest.raises(InputError, match=rf"provenance.json: {message}"):
        raw_tree.ingested(root, tmp_path / "out")


def test_a_record_s_own_word_wins_over_what_is_declared_for_its_file(root, tmp_path):
    planted(root, {"dataset": "Own"}, {"alignment/alignment.json": {"dataset": "PMC", "modality": "ct"}})
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out", STRICT) / "tables").samples
    assert {"microscopy", "Own"} <= set(made["modality"]) | set(made["dataset"])
    assert "PMC" not in set(made["dataset"])


def test_records_that_tell_an_image_apart_make_two_of_it_on_one_side_of_the_split(root, tmp_path):
    other = OMNIMED | {"dataset": "Other", "question_id": "again"}
    edit(root, CHOICES, lambda records: [*records, other])
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out", STRICT) / "tables")
    twins = made.samples[made.samples["sample_id"].str.contains(f"xyz-{digest(SCAN)}", regex=False)]
    assert set(twins["dataset"]) == {"Chest_CT_Scan", "Other"} and twins["split"].nunique() == 1
    assert len(made.conversations[made.conversations["sample_id"].isin(twins["sample_id"])]) == 2


@pytest.mark.parametrize(
    ("path", "dataset"),
    [("a/b c.png", "Set  1"), ("α/β--.png".replace("--", "-"), "Ω"), ("x/.hidden.png", "-A-"), ("ä" * 90 + ".jpg", "B"), ("a/--.png", "C")],
)
def test_a_made_name_is_read_as_it_was_made_and_stays_in_its_folder(path, dataset):
    found = names.named_after(path, "ct", dataset)
    assert names.image(f"images/{found.stem}.png") == found
    assert found.stem.isprintable() and "/" not in found.stem and len(found.stem.encode()) <= 200
    assert found.stem != names.named_after(f"other/{path}", "ct", dataset).stem
