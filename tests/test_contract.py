"""The data contract: sound subsets pass whole, planted damage costs the row or ends the stage, and the verdict says which."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import raw_tree
import yaml
from raw_tree import BOUNDS, STEMS

from unimed import NOTICE
from unimed.config import Ingest, Validate
from unimed.data import contract, facts, masks, subset, tables
from unimed.data.tables import Tables
from unimed.errors import InputError

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "sa-med2d-sample"
A = STEMS[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Shards and subsets of a sound download."""
    folder = tmp_path_factory.mktemp("data")
    raw_tree.ingested(raw_tree.write(folder / "raw"), folder)
    for task in subset.TASKS:
        raw_tree.chosen(folder, task)
    return folder


def validated(made, out, task="grounding", change=None, bounds=BOUNDS):
    """Validate a subset after `change` has altered its tables; gives the verdict."""
    source = made / "subsets" / task
    if change:
        source = out / "changed"
        shutil.copytree(made / "subsets" / task, source)
        change(Tables.read(source)).write(source)
    contract.write(source, made / "shards", out / "valid", bounds)
    return json.loads((out / "valid" / "verdict.json").read_text())


def broken(verdict):
    return {one["name"]: one["failed"] for one in verdict["expectations"] if one["failed"]}


@pytest.mark.parametrize("task", subset.TASKS)
def test_a_sound_subset_passes_whole(made, tmp_path, task):
    verdict = validated(made, tmp_path, task)
    assert verdict["passed"] and verdict["kept"] == verdict["checked"]
    assert broken(verdict) == {"licence_known": 7}
    for file in ("samples.parquet", "masks.parquet", "conversations.parquet", "manifest.json"):
        assert (tmp_path / "valid" / file).read_bytes() == (made / "subsets" / task / file).read_bytes()


def test_the_same_subset_gives_the_same_bytes(made, tmp_path):
    for name in ("one", "two"):
        validated(made, tmp_path / name)
    assert tables.digest(tmp_path / "one" / "valid") == tables.digest(tmp_path / "two" / "valid")


def in_row(table, key, **values):
    """A change that puts values into the row with this id."""

    def change(whole: Tables) -> Tables:
        rows = getattr(whole, table).copy()
        place = rows[facts.KEYS[table]] == key
        assert place.sum() == 1
        for column, value in values.items():
            rows.loc[place, column] = value
        return replace(whole, **{table: rows})

    return change


def turn(question="Segment it.", answer="None.", regions=(), targets=()):
    return json.dumps([{"question": question, "answer": answer, "regions": list(regions), "targets": list(targets)}])


LIVER = f"{A}--0001_000"
FULL, EMPTY, DOT = (
    np.ones(raw_tree.size(A), bool),
    np.zeros(raw_tree.size(A), bool),
    np.eye(*raw_tree.size(A), dtype=bool) & (np.arange(30) < 2),
)
ROWS = {
    "image_size": ("samples", STEMS[5], {"height": 21}),
    "modality_known": ("samples", STEMS[6], {"modality": "sonar"}),
    "mask_not_empty": ("masks", LIVER, {"rle": masks.encode(EMPTY), "area": 0}),
    "mask_not_tiny": ("masks", f"{A}--0002_000", {"rle": masks.encode(DOT), "area": 2}),
    "mask_not_inverted": ("masks", f"{A}--0002_001", {"rle": masks.encode(FULL), "area": 600}),
    "mask_area_noted": ("masks", f"{STEMS[1]}--0001_000", {"area": 3}),
    "mask_unpacks": ("masks", f"{STEMS[2]}--0001_000", {"rle": "1234"}),
    "mask_size": ("masks", f"{STEMS[3]}--0001_000", {"height": 27, "width": 23}),
    "mask_has_image": ("masks", f"{STEMS[4]}--0002_000", {"sample_id": "nobody"}),
    "turns_readable": ("conversations", f"{A}--g0", {"turns": '{"question": 1}'}),
    "conversation_has_image": ("conversations", f"{STEMS[1]}--g0", {"sample_id": "nobody"}),
    "masks_resolve": ("conversations", f"{STEMS[2]}--g0", {"turns": turn(answer="<SEG>", targets=[[f"{STEMS[1]}--0002_000"]])}),
    "seg_per_target": ("conversations", f"{STEMS[1]}--g3", {"turns": turn(answer="<SEG> <SEG>", targets=[[f"{STEMS[1]}--0002_000"]])}),
    "mark_per_region": ("conversations", f"{STEMS[2]}--g3", {"turns": turn(question="What?", regions=[f"{STEMS[2]}--0002_000"])}),
    "no_empty_text": ("conversations", f"{STEMS[3]}--g0", {"turns": turn(answer=" ")}),
    "no_path": ("conversations", f"{STEMS[4]}--g0", {"turns": turn(question="See masks/x")}),
}
LEFT = {f"{STEMS[3]}--g3", f"{STEMS[4]}--g3"}
"""The only conversations that name no damaged row."""


@pytest.fixture(scope="module")
def damaged(made, tmp_path_factory):
    """Verdict and folder of a subset in which every promise about a row is broken by one row of its own."""

    def change(whole: Tables) -> Tables:
        for table, key, values in ROWS.values():
            whole = in_row(table, key, **values)(whole)
        return whole

    out = tmp_path_factory.mktemp("damaged")
    return validated(made, out, change=change), out / "valid"


@pytest.mark.parametrize("promise", ROWS)
def test_a_damaged_row_is_named_and_left_out(damaged, promise):
    verdict, folder = damaged
    table, key, _ = ROWS[promise]
    told = next(one for one in verdict["expectations"] if one["name"] == promise)
    assert key in told["examples"] and told["severity"] == "quarantine"
    assert key not in set(getattr(Tables.read(folder), table)[facts.KEYS[table]])


def test_what_depends_on_a_damaged_row_is_left_out_and_nothing_else(damaged):
    verdict, folder = damaged
    passed = Tables.read(folder)
    assert set(passed.conversations["conversation_id"]) == LEFT
    assert set(passed.samples["sample_id"]) == set(STEMS[:5])
    assert len(passed.masks) == 18 - 7 - 3, "seven damaged, three of an image that is left out"
    assert verdict["kept"] == {"samples": 5, "masks": 8, "conversations": 2}


def test_a_row_breaks_the_promise_that_it_breaks_and_no_other(damaged):
    counts = broken(damaged[0])
    assert counts["mask_not_empty"] == counts["mask_area_noted"] == 2, "run lengths that do not unpack have no area either"
    assert {
        name: counts[name] for name in ("image_size", "modality_known", "mask_not_inverted", "mark_per_region", "no_path")
    } == dict.fromkeys(("image_size", "modality_known", "mask_not_inverted", "mark_per_region", "no_path"), 1)


def with_severities(**severities):
    return BOUNDS.model_copy(update={"severities": severities})


def test_what_has_no_image_is_left_out_even_where_that_is_only_told(made, tmp_path):
    def change(whole: Tables) -> Tables:
        return replace(whole, samples=whole.samples[whole.samples["sample_id"] != A])

    verdict = validated(made, tmp_path, change=change, bounds=with_severities(mask_has_image="warn", conversation_has_image="warn"))
    assert broken(verdict)["mask_has_image"] == 3
    passed = Tables.read(tmp_path / "valid")
    assert not {A} & (set(passed.masks["sample_id"]) | set(passed.conversations["sample_id"]))
    assert verdict["kept"]["masks"] == 18 - 3


def test_an_image_that_is_listed_again_as_it_is_keeps_its_masks(made, tmp_path):
    def change(whole: Tables) -> Tables:
        again = whole.samples[whole.samples["sample_id"] == A].assign(height=1)
        return replace(whole, samples=pd.concat([whole.samples, again]))

    verdict = validated(made, tmp_path, change=change, bounds=with_severities(image_ids_unique="warn"))
    assert broken(verdict)["image_size"] == 1
    assert verdict["kept"] == {**verdict["checked"], "samples": 7} and verdict["checked"]["samples"] == 8


def test_a_solution_that_is_no_option_is_left_out(made, tmp_path):
    key = f"{A}--multiple_choice--0"
    verdict = validated(made, tmp_path, "reasoning", in_row("conversations", key, solution="D"))
    assert broken(verdict)["solution_is_option"] == 1
    assert key not in set(Tables.read(tmp_path / "valid").conversations["conversation_id"])


def test_damage_to_the_collection_ends_the_stage_and_leaves_nothing(made, tmp_path):
    def change(whole: Tables) -> Tables:
        samples = whole.samples.assign(split=np.where(whole.samples["sample_id"] == A, "val", "train"))
        doubled = {table: rows.iloc[[*range(len(rows)), 0]] for table, rows in vars(replace(whole, samples=samples)).items()}
        return in_row("samples", STEMS[2], sha256="0" * 64)(Tables(**doubled))

    with pytest.raises(InputError) as error:
        validated(made, tmp_path, change=change)
    for told in (
        f"image_ids_unique (an image is listed once) broken by 2 of 8 samples, such as {A}, {A}",
        f"image_bytes (the shard holds the bytes that were packed (sha256)) broken by 1 of 8 samples, such as {STEMS[2]}",
        f"case_in_one_split (all slices of a case are in one split) broken by 3 of 8 samples, such as {A}, {A}, {STEMS[1]}",
        f"mask_ids_unique (a mask is listed once) broken by 2 of 19 masks, such as {LIVER}, {LIVER}",
        f"conversation_ids_unique (a conversation is listed once) broken by 2 of 26 conversations, such as {A}--g0, {A}--g0",
    ):
        assert told in str(error.value)
    assert not (tmp_path / "valid").exists()


def test_an_image_that_no_longer_decodes_is_seen(made, tmp_path):
    shutil.copytree(made / "shards", tmp_path / "shards")
    row = Tables.read(made / "tables").samples.set_index("sample_id").loc[A]
    with (tmp_path / "shards" / row["shard"]).open("r+b") as shard:
        shard.seek(int(row["offset"]) + 60)
        shard.write(bytes(40))
    with pytest.raises(InputError, match=rf"image_bytes .* broken by 1 of 7 samples, such as {A}"):
        contract.write(made / "subsets" / "alignment", tmp_path / "shards", tmp_path / "valid", BOUNDS)


def test_more_damage_than_allowed_ends_the_stage_with_counts(made, tmp_path):
    strict = BOUNDS.model_copy(update={"max_bad_fraction": 0.01})
    with pytest.raises(InputError, match=rf"mask_not_empty \(the mask has foreground\) broken by 1 of 18 masks, such as {LIVER}"):
        validated(made, tmp_path, change=in_row("masks", LIVER, rle=masks.encode(EMPTY), area=0), bounds=strict)


def test_a_subset_that_loses_all_training_data_ends_the_stage(made, tmp_path):
    with pytest.raises(InputError, match="expected at least one train conversation that keeps the contract, found none"):
        validated(made, tmp_path, change=lambda whole: replace(whole, samples=whole.samples.assign(modality="sonar")))


def test_the_report_shows_offenders_needs_nothing_from_elsewhere_and_runs_nothing_from_the_data(made, tmp_path):
    def change(whole: Tables) -> Tables:
        return in_row("samples", STEMS[1], modality="<script>alert(1)</script>")(
            in_row("masks", LIVER, rle=masks.encode(FULL), area=600)(whole)
        )

    validated(made, tmp_path, change=change)
    page = (tmp_path / "valid" / "report.html").read_text()
    assert NOTICE in page and f"<figcaption><b>liver</b><br>{LIVER}</figcaption>" in page
    assert page.count("data:image/png;base64,") == 6, "one mask, one image of no modality, and four of the images without a licence"
    assert not re.search(r"""<script|(?:src|href)=["'](?!data:)|https?://|@import""", page)


@pytest.mark.skipif(not REAL.exists(), reason="needs the real sample in ../shared/data beside the repository")
def test_the_real_sample_keeps_the_contract_as_shipped(tmp_path):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    made = raw_tree.ingested(REAL, tmp_path / "made", Ingest.model_validate(params["ingest"]), seed=params["seed"])
    raw_tree.chosen(made, "grounding")
    verdict = validated(made, tmp_path, bounds=Validate.model_validate(params["validate"]))
    assert verdict["kept"] == verdict["checked"] == {"samples": 2, "masks": 19, "conversations": 19}
