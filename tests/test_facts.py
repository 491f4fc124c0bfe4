"""What DuckDB makes of tables and measurements: every part of a place, a size and a name counts, in tables of several shards and parts."""

import json
import shutil
from dataclasses import replace

import duckdb
import numpy as np
import planted
import pyarrow.parquet as pq
import pytest
import raw_tree
from raw_tree import BOUNDS, STEMS

from unimed.data import facts, image_facts
from unimed.errors import InputError

A, B = STEMS[:2]
LIVER = f"{A}--0001_000"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Shards and a subset of a sound download."""
    return raw_tree.sound(tmp_path_factory.mktemp("data"))


@pytest.fixture
def good(made, tmp_path):
    """A copy of the subset, to be spoilt."""
    return planted.copied(made / "subsets" / "grounding", made / "shards", tmp_path, BOUNDS)


def offenders(found, folder, table, column, right=True):
    """The ids of the rows whose fact is not the right one."""
    return {key for key, value in found.facts(folder, table, column).items() if value != right}


def test_an_orientation_that_is_none_is_refused(good, tmp_path):
    good.manifest["provenance"]["orientation"] = {"SetA": "radiologic"}
    with pytest.raises(
        InputError, match=r"manifest.json: expected 'orientation' by data set \(radiological or image\), found .*radiologic'"
    ):
        good.facts(tmp_path / "subset", "samples", "decodes")


@pytest.mark.parametrize(("splits", "found"), [(("train", "train"), set()), (("train", "test"), {STEMS[0], STEMS[4]})])
def test_copies_are_faults_where_they_are_in_different_splits_whatever_their_cases(good, tmp_path, splits, found):
    rows = good.tables.samples.set_index("sample_id")
    for key in STEMS:
        good.put("samples", key, split="train")
    for key, split in zip((STEMS[0], STEMS[4]), splits, strict=True):
        good.put("samples", key, split=split, fingerprint=rows.loc[A, "fingerprint"])
    assert offenders(good, tmp_path / "subset", "samples", "seen_elsewhere", right=False) == found


def test_the_same_case_name_in_two_data_sets_is_two_cases(good, tmp_path):
    for key in STEMS:
        good.put("samples", key, split="train" if "--SetA--" in key else "test")
    assert offenders(good, tmp_path / "subset", "samples", "splits_of_case", right=1) == set()


def test_the_same_place_in_another_shard_is_another_image(good, tmp_path):
    """The second image is looked for where the first lies, in a shard that holds other bytes there."""
    about = good.tables.samples.set_index("sample_id").loc[A, ["offset", "size", "sha256", "height", "width"]]
    shutil.copy(good.shards / "shard-000000.tar", good.shards / "shard-000001.tar")
    with (good.shards / "shard-000001.tar").open("r+b") as shard:
        shard.seek(int(about["offset"]))
        shard.write(bytes(40))
    good.put("samples", B, shard="shard-000001.tar", **about)
    with good.opened(tmp_path / "subset") as connection:
        found = connection.sql("SELECT sample_id, bytes_match, decodes FROM facts_of_samples").fetchall()
    assert sorted(found) == sorted((key, key != B, key != B) for key in STEMS)


def test_a_shard_is_one_job_however_its_images_are_spread_over_the_table(tmp_path):
    rows = ", ".join(f"('{shard}', {offset}, 9)" for offset in (30, 20, 10) for shard in ("b", "a", "c"))
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE samples AS FROM (VALUES {rows}, ('a', 20, 9)) AS one (shard, \"offset\", size)")
        asked = [(one.shard, one.places.tolist()) for one in image_facts.jobs(connection, tmp_path, for_text=False)]
    assert asked == [(shard, [[10, 9], [20, 9], [30, 9]]) for shard in "abc"]


@pytest.mark.parametrize("side", ["height", "width"])
@pytest.mark.parametrize(("table", "key"), [("samples", A), ("masks", LIVER)])
def test_either_side_makes_a_size_another(good, tmp_path, table, key, side):
    good.put(table, key, **{side: 7})
    assert offenders(good, tmp_path / "subset", table, "size_matches") == {key}


@pytest.mark.parametrize(
    ("prefix", "values", "agrees"),
    [
        ("ct_00", {}, True),
        ("CT_00", {}, True),
        ("ct", {}, True),
        ("ctx_00", {}, False),
        ("mr_t1", {}, False),
        ("ct_00", {"slice": "w_0001"}, False),
        ("ct_00", {"slice": "z_1a"}, False),
        ("ct_00", {"slice": "2d_none"}, True),
        ("ct_00", {"case": "a--b"}, True),
    ],
)
def test_the_name_of_an_image_says_modality_and_a_plane_with_a_number(good, tmp_path, prefix, values, agrees):
    row = {"dataset": "SetA", "case": "case_9", "slice": "z_0001"} | values
    name = "--".join((prefix, *row.values()))
    good.put("samples", A, sample_id=name, **row)
    assert good.facts(tmp_path / "subset", "samples", "name_agrees")[name] is agrees


@pytest.mark.parametrize(
    ("name", "class_id", "instance", "agrees"),
    [
        (f"{A}--0001_000", 1, 0, True),
        (f"{A}--12345_1000", 12345, 1000, True),
        (f"{A}--0001_merged", 1, -1, True),
        (f"{A}--001_000", 1, 0, False),
        (f"{A}--0001_00", 1, 0, False),
        (f"{B}--0001_099", 1, 99, False),
        (f"{A}__0001_000", 1, 0, False),
        (f"{A}--99999999999999999999_000", 1, 0, False),
    ],
)
def test_the_name_of_a_mask_says_its_image_class_and_instance_in_four_and_three_digits(good, tmp_path, name, class_id, instance, agrees):
    good.put("masks", LIVER, mask_id=name, class_id=class_id, instance=instance)
    assert good.facts(tmp_path / "subset", "masks", "name_agrees")[name] is agrees


@pytest.mark.parametrize("noted", [59, 61])
def test_an_area_is_noted_to_the_pixel(good, tmp_path, noted):
    pixels = np.zeros_like(good.mask(LIVER))
    pixels[:6, :10] = True
    good.draw(LIVER, pixels)
    good.put("masks", LIVER, area=noted)
    assert offenders(good, tmp_path / "subset", "masks", "area_matches") == {LIVER}


def test_a_mask_of_more_pixels_than_32_bits_count_is_judged_like_others(good, tmp_path):
    good.put("masks", LIVER, height=2**17, width=2**17)
    assert good.facts(tmp_path / "subset", "masks", "area_fraction")[LIVER] == 0
    assert offenders(good, tmp_path / "subset", "masks", "unpacks") == {LIVER}


def test_a_class_id_with_two_names_in_a_data_set_is_a_fault_of_all_its_masks_there(good, tmp_path):
    """Liver is 1 in the one data set and 2 in the other, which is no fault."""
    good.put("masks", LIVER, class_name="hepar")
    livers = {key for key in good.tables.masks["mask_id"] if "--SetA--" in key and key.endswith("--0001_000")}
    assert len(livers) > 2
    assert offenders(good, tmp_path / "subset", "masks", "names_of_class_id", right=1) == livers


def test_offenders_have_the_number_of_their_row_in_a_table_of_several_parts(good, tmp_path):
    good.tables.write(tmp_path / "subset")
    for name in facts.SCHEMAS:
        path = tmp_path / "subset" / f"{name}.parquet"
        pq.write_table(pq.read_table(path), path, row_group_size=2)
    (tmp_path / "subset" / "manifest.json").write_text("{}")
    with facts.opened(tmp_path / "subset", good.shards) as connection:
        for name in facts.SCHEMAS:
            key = facts.KEYS[name]
            found = connection.sql(f"SELECT row, {key} FROM facts_of_{name} ORDER BY row").fetchall()
            assert found == list(enumerate(pq.read_table(tmp_path / "subset" / f"{name}.parquet")[key].to_pylist())), name
        assert connection.sql("SELECT bool_and(masks_resolve) FROM facts_of_conversations").fetchall() == [(True,)]


def test_a_refusal_in_one_turn_is_held_against_the_masks_also_where_another_turn_points(good, tmp_path):
    key, turn = good.turn(lambda turn: turn["targets"] == [[LIVER]])
    said = good.tables.conversations
    good.tables = replace(good.tables, conversations=said[said["conversation_id"] == key])
    refusal = {"question": "Segment the kidney.", "answer": "There is none.", "regions": [], "targets": []}
    good.put("conversations", key, turns=json.dumps([turn, refusal]))
    assert good.facts(tmp_path / "subset", "conversations", "absent_is_absent") == {key: False}
