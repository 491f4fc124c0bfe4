"""The contract as params ask for it: severities, floors of counts and licences."""

import json

import duckdb
import pytest
import raw_tree
from raw_tree import BOUNDS

from unimed.config import Validate
from unimed.data import contract, facts
from unimed.data.promises import contract as promised
from unimed.data.tables import Tables
from unimed.errors import InputError


def bounds(**values) -> Validate:
    return Validate.model_validate(BOUNDS.model_dump() | values)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Shards and a subset of a sound download: 3 livers for every 2 kidneys, 3 CT, 2 MR and 2 ultrasound images."""
    return raw_tree.sound(tmp_path_factory.mktemp("data"))


def validate(made, out, **values):
    contract.write(made / "subsets" / "grounding", made / "shards", out, bounds(**values))
    return json.loads((out / "verdict.json").read_text())


def test_names_are_unique_and_every_promise_is_about_facts_that_there_are(made):
    promises = promised(bounds(licences=["CC0-1.0"]))
    assert len({promise.name for promise in promises}) == len(promises) > 40
    with facts.opened(made / "subsets" / "grounding", made / "shards") as connection:
        for promise in promises:
            assert promise.check.column in connection.sql(f"FROM facts_of_{promise.table}").columns


def test_an_unknown_promise_is_one_sentence():
    with pytest.raises(
        InputError, match=r"^validate.severities: expected names of promises \(image_ids_unique, .*\), found 'mask_pretty'$"
    ):
        promised(bounds(severities={"mask_pretty": "stop"}))
    with pytest.raises(ValueError, match="severities"):
        bounds(severities={"mask_size": "ignore"})


def test_a_row_of_a_table_that_counts_cannot_be_quarantined():
    with pytest.raises(InputError, match="expected stop or warn for classes_covered, found 'quarantine'"):
        promised(bounds(severities={"classes_covered": "quarantine"}))


def test_what_spoils_the_collection_ends_the_stage_what_is_only_odd_is_told_and_all_else_costs_the_row():
    promises = promised(bounds(licences=["CC0-1.0"], most_glyphs=3))
    assert {promise.name for promise in promises if promise.severity != "quarantine"} == {*STOPS, *WARNS}
    assert {promise.name for promise in promises if promise.severity == "warn"} == WARNS


STOPS = {"image_ids_unique", "image_bytes", "case_in_one_split", "image_in_one_split", "mask_ids_unique", "conversation_ids_unique"} | {
    "licence_allowed", "classes_covered", "modalities_covered",
}  # fmt: skip
WARNS = {"licence_known", "mask_not_scattered", "side_of_mask"}


@pytest.mark.parametrize(
    ("promise", "kept", "broken"),
    [
        ("image_channels", ["L", "LA", "RGB", "RGBA", "P", "1", "I", "F", ""], ["CMYK", "YCbCr", "HSV"]),
        ("image_has_content", [0, 3], [1, 2]),
        ("image_without_text", [0, 3], [4]),
        ("licence_known", ["CC0-1.0"], ["", "unknown"]),
        ("mask_not_empty", [1], [0]),
        ("mask_not_tiny", [4], [3]),
        ("mask_not_inverted", [0.9], [0.9001]),
        ("mask_not_scattered", [20], [21]),
        ("classes_covered", [7], [6]),
        ("modalities_covered", [3], [2]),
        (
            "no_leftover",
            ["[1, 2]", "SUV_{max}", "50%", "banana"],
            ["<image>", "</box>", "{}", "{organ}", "{a_b}", "[MASK]", "%s", "TODO: it"],
        ),
        (
            "no_path",
            ["mg/kg/day", "a -- b", "1:2"],
            ["masks/x", "masks_merged/x", "images/a--b", "x.png.", r"D:\scans", "/data/x/", "a--b--z_1"],
        ),
    ],
)
def test_a_value_at_its_bound_keeps_a_promise_and_the_next_one_breaks_it(promise, kept, broken):
    asked = bounds(most_glyphs=3, least_masks_of_class=7, least_images_of_modality=3)
    [check] = [one.check for one in promised(asked) if one.name == promise]
    with duckdb.connect() as connection:
        query = f"SELECT {check.broken('')} FROM (SELECT ? AS {check.column})"
        found = {value: connection.execute(query, [value]).fetchall()[0][0] for value in (*kept, *broken)}
    assert found == dict.fromkeys(kept, False) | dict.fromkeys(broken, True)


@pytest.mark.slow
def test_a_severity_of_ones_own_is_what_happens(made, tmp_path):
    told = validate(made, tmp_path / "warned", severities={"modality_known": "warn"})
    assert {one["name"]: one["severity"] for one in told["expectations"]}["modality_known"] == "warn"
    with pytest.raises(InputError, match="licence_known .* broken by 7 of 7 samples"):
        validate(made, tmp_path / "stopped", severities={"licence_known": "stop"})


@pytest.mark.slow
def test_a_licence_that_is_not_allowed_ends_the_stage(made, tmp_path):
    with pytest.raises(InputError, match=r"licence_allowed \(the licence of the data set is CC0-1.0\) broken by 7 of 7 samples"):
        validate(made, tmp_path / "valid", licences=["CC0-1.0"])
    assert not (tmp_path / "valid").exists()
    assert validate(made, tmp_path / "valid", licences=["unknown"])["passed"]


@pytest.mark.slow
def test_a_class_or_modality_with_too_few_ends_the_stage_by_name(made, tmp_path):
    whole = Tables.read(made / "subsets" / "grounding")
    classes, modalities = whole.masks["class_name"].value_counts(), whole.samples["modality"].value_counts()
    assert dict(classes) == {"kidney": 12, "liver": 6} and modalities["ct"] == 3
    with pytest.raises(InputError) as error:
        validate(made, tmp_path / "valid", least_masks_of_class=7, least_images_of_modality=3)
    assert "classes_covered (each class has at least 7 masks) broken by 1 of 2 classes, such as liver" in str(error.value)
    assert "modalities_covered (each modality has at least 3 images) broken by 2 of 3 modalities, such as mr, ultrasound" in str(
        error.value
    )
    told = validate(made, tmp_path / "warned", least_masks_of_class=7, severities={"classes_covered": "warn"})
    assert {one["name"]: one["failed"] for one in told["expectations"]}["classes_covered"] == 1
    assert validate(made, tmp_path / "enough", least_masks_of_class=6, least_images_of_modality=2)["passed"]
