"""Ingest: a download becomes shards and tables, and every fault is set aside with a sentence that names it."""

import hashlib
import json
from pathlib import Path

import pytest
import raw_tree
from raw_tree import BARE, CAPTIONS, CHOICES, GROUNDING, INDEX, REGION, STEMS, VQA, edit, mask_path, quarantine

from unimed.data import masks, pool, shards, splits, tables
from unimed.data.shards import Place
from unimed.data.tables import Tables
from unimed.errors import InputError

REAL = Path(__file__).parents[2] / "shared" / "data" / "sa-med2d-sample"
A = STEMS[0]


@pytest.fixture
def root(tmp_path):
    return raw_tree.write(tmp_path / "raw")


def turns(made, conversation_id):
    rows = made.conversations[made.conversations["conversation_id"] == conversation_id]
    return json.loads(rows["turns"].item())


def test_a_sound_download_goes_in_whole(root, tmp_path):
    out = raw_tree.ingested(root, tmp_path / "out")
    made = Tables.read(out / "tables")
    counts = json.loads((out / "tables" / "manifest.json").read_text())["counts"]
    assert len(quarantine(out)) == 0
    assert counts["conversations_by_task"] == {"alignment": 7, "grounding": 25, "reasoning": 7, "region": 12, "vqa": 14}
    assert len(made.samples) == 7
    assert (made.masks["instance"] >= 0).sum() == 18


def test_a_shard_gives_back_the_bytes_that_were_downloaded(root, tmp_path):
    out = raw_tree.ingested(root, tmp_path / "out")
    for row in Tables.read(out / "tables").samples.to_dict("records"):
        content = shards.read(out / "shards", Place(row["shard"], row["offset"], row["size"]))
        assert content == (root / "SAMed2Dv1" / "images" / f"{row['sample_id']}.png").read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["sha256"]


def test_masks_keep_their_pixels_in_both_conventions(root, tmp_path):
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out") / "tables")
    for row in made.masks[made.masks["instance"] >= 0].to_dict("records"):
        true = raw_tree.mask(row["sample_id"], row["class_name"], row["instance"])
        assert (masks.decode(row["rle"], row["height"], row["width"]) == true).all()
        assert row["area"] == true.sum()


def test_class_ids_are_those_of_the_data_set(root, tmp_path):
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out") / "tables")
    pairs = made.masks.merge(made.samples, on="sample_id")[["dataset", "class_name", "class_id"]].drop_duplicates()
    assert sorted(pairs.itertuples(index=False, name=None)) == [
        ("SetA", "kidney", 2), ("SetA", "liver", 1), ("SetB", "kidney", 1), ("SetB", "liver", 2)
    ]  # fmt: skip


def test_a_merged_target_stands_for_all_instances_of_its_class(root, tmp_path):
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out") / "tables")
    (turn,) = turns(made, f"{A}--g2")
    assert turn["answer"] == "<SEG> and <SEG>"
    assert turn["targets"] == [[f"{A}--0002_000", f"{A}--0002_001"], [f"{A}--0001_000"]]
    assert turns(made, f"{A}--g3")[0]["targets"] == [[f"{A}--0002_001"]]


def test_a_merged_region_becomes_one_mask(root, tmp_path):
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out") / "tables")
    (turn,) = turns(made, f"{A}--r2")
    assert turn["question"] == "What lies in <region> and <region>?"
    assert turn["regions"] == [f"{A}--0001_000", f"{A}--0002_merged"]
    row = made.masks[made.masks["mask_id"] == turn["regions"][1]].iloc[0]
    both = raw_tree.mask(A, "kidney", 0) | raw_tree.mask(A, "kidney", 1)
    assert (masks.decode(row["rle"], row["height"], row["width"]) == both).all()


def test_texts_are_clean_and_every_turn_is_kept(root, tmp_path):
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out") / "tables")
    said_twice = turns(made, f"{A}--d")
    assert [(turn["question"], turn["answer"]) for turn in said_twice] == [("What is shown?", "A slice."), ("Of whom?", "Nobody.")]
    choice = made.conversations[(made.conversations["task"] == "reasoning") & (made.conversations["sample_id"] == A)].iloc[0]
    assert json.loads(choice["turns"])[0] == {
        "question": "Which modality is this?\nA) ct\nB) mr\nC) ultrasound", "answer": "A", "regions": [], "targets": []
    }  # fmt: skip
    assert (json.loads(choice["options"]), choice["solution"], choice["rationale"]) == (
        ["ct", "mr", "ultrasound"],
        "A",
        "It looks like it.",
    )


def test_only_images_that_annotations_name_are_packed(root, tmp_path):
    for file in (VQA, REGION, GROUNDING, CAPTIONS, CHOICES):
        edit(root, file, lambda records: [record for record in records if A not in str(record["image"])])
    (root / "SAMed2Dv1" / "images" / f"{A}.png").write_bytes(b"nobody opens this")
    out = raw_tree.ingested(root, tmp_path / "out")
    assert A not in set(Tables.read(out / "tables").samples["sample_id"])
    assert len(quarantine(out)) == 0


def test_the_same_download_gives_the_same_bytes(root, tmp_path):
    (root / "SAMed2Dv1" / "images" / f"{A}.png").write_bytes(b"broken")
    one, two = (raw_tree.ingested(root, tmp_path / name) for name in ("one", "two"))
    assert tables.digest(one) == tables.digest(two)


def test_many_small_shards_hold_what_one_holds(root, tmp_path):
    out = raw_tree.ingested(root, tmp_path / "out")
    items = [Item(f"image {number}", bytes([number]) * 3000) for number in range(5)]
    placed = list(shards.write(tmp_path / "small", items, shard_bytes=8000))
    assert [place.shard for _, place in placed] == ["shard-000000.tar"] * 2 + ["shard-000001.tar"] * 2 + ["shard-000002.tar"]
    assert all(shards.read(tmp_path / "small", place) == item.content for item, place in placed)
    assert len(list((out / "shards").iterdir())) == 1


def test_many_jobs_on_several_cores_keep_their_order():
    assert list(pool.ordered(abs, range(-2000, 0))) == list(range(2000, 0, -1))


class Item:
    """Something to pack."""

    def __init__(self, sample_id: str, content: bytes) -> None:
        self.sample_id, self.content = sample_id, content


@pytest.mark.parametrize("place", [Place("shard-000000.tar", 10**9, 5), Place("../outside", 0, 1), Place("absent.tar", 0, 1)])
def test_a_place_that_no_shard_has_is_refused(root, tmp_path, place):
    out = raw_tree.ingested(root, tmp_path / "out")
    (out / "outside").write_bytes(b"secret")
    with pytest.raises(InputError, match=r"expected .*, found "):
        shards.read(out / "shards", place)


def test_splits_keep_cases_whole_and_fill_their_shares():
    cases = [("Set", f"case_{number}") for number in range(50)]
    found = splits.assign(cases * 3, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=3)
    assert tables.tally(found.values()) == {"test": 5, "train": 40, "val": 5}
    assert found == splits.assign(reversed(cases), {"train": 0.8, "val": 0.1, "test": 0.1}, seed=3)
    assert found != splits.assign(cases, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=4)


@pytest.mark.parametrize(("count", "expected"), [(1, {"train": 1}), (2, {"test": 1, "train": 1}), (3, {"test": 1, "train": 2})])
def test_few_cases_still_train_and_test(count, expected):
    found = splits.assign([("Set", str(number)) for number in range(count)], {"train": 0.98, "val": 0.01, "test": 0.01}, seed=0)
    assert tables.tally(found.values()) == expected


def test_licences_come_from_the_download_and_from_params(root, tmp_path):
    (root / "provenance.json").write_text(json.dumps({"licences": {"SetA": "CC0-1.0"}}))
    settings = raw_tree.TOLERANT.model_copy(update={"licences": {"SetB": "CC-BY-4.0"}})
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out", settings) / "tables")
    assert set(zip(made.samples["dataset"], made.samples["licence"], strict=True)) == {("SetA", "CC0-1.0"), ("SetB", "CC-BY-4.0")}


def test_a_licence_that_params_name_stands_over_that_of_the_download(root, tmp_path):
    (root / "provenance.json").write_text(json.dumps({"licences": {"SetA": "CC0-1.0", "SetB": "CC0-1.0"}}))
    settings = raw_tree.TOLERANT.model_copy(update={"licences": {"SetB": "CC-BY-4.0"}})
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out", settings) / "tables")
    assert set(zip(made.samples["dataset"], made.samples["licence"], strict=True)) == {("SetA", "CC0-1.0"), ("SetB", "CC-BY-4.0")}


@pytest.mark.skipif(not REAL.exists(), reason="needs the real sample in ../shared/data beside the repository")
def test_the_real_sample_goes_in_whole(tmp_path):
    strict = raw_tree.TOLERANT.model_copy(update={"max_bad_fraction": 0, "max_pixels": 2**24})
    out = raw_tree.ingested(REAL, tmp_path / "out", strict)
    made = Tables.read(out / "tables")
    assert (len(made.samples), len(made.masks), len(quarantine(out))) == (3, 19, 0)
    assert {"train", "test"} <= set(made.samples["split"])


def test_an_image_without_masks_can_still_be_asked_about(root, tmp_path):
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out") / "tables")
    assert BARE not in set(made.masks["sample_id"])
    assert set(made.conversations["task"][made.conversations["sample_id"] == BARE]) == {"alignment", "grounding", "reasoning", "vqa"}


def test_a_mask_that_only_an_annotation_names_is_packed(root, tmp_path):
    edit(root, INDEX, lambda index: index[f"images/{A}.png"].remove(mask_path(A, "kidney", 1)))
    made = Tables.read(raw_tree.ingested(root, tmp_path / "out") / "tables")
    assert turns(made, f"{A}--g3")[0]["targets"] == [[f"{A}--0002_001"]]
