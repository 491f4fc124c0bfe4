"""Export: folders that other tools read, and that give the same conversations when they are ingested again."""

import json

import numpy as np
import pytest
import raw_tree
from PIL import Image
from raw_tree import STEMS

from unimed.data import export, tables
from unimed.data.tables import Tables
from unimed.errors import InputError

A = STEMS[0]


@pytest.fixture
def out(tmp_path):
    return raw_tree.ingested(raw_tree.write(tmp_path / "raw"), tmp_path / "out")


@pytest.mark.parametrize("task", ["everything", "alignment", "vqa", "grounding", "reasoning"])
def test_what_is_exported_gives_the_same_conversations_again(out, tmp_path, task):
    source = out / "tables" if task == "everything" else raw_tree.chosen(out, task)
    export.write(source, out / "shards", tmp_path / "exported")
    strict = raw_tree.TOLERANT.model_copy(update={"max_bad_fraction": 0})
    again = raw_tree.ingested(tmp_path / "exported", tmp_path / "again", strict)
    before, after = Tables.read(source), Tables.read(again / "tables")
    assert before.conversations.to_dict("records") == after.conversations.to_dict("records")
    columns = [name for name in tables.SAMPLES.names if name not in ("shard", "offset", "split")]
    assert before.samples[columns].to_dict("records") == after.samples[columns].to_dict("records")
    named = before.masks.set_index("mask_id").loc[after.masks["mask_id"]]
    assert named["rle"].tolist() == after.masks["rle"].tolist()


def test_masks_are_black_and_white_and_a_union_is_a_file(out, tmp_path):
    export.write(out / "tables", out / "shards", tmp_path / "exported")
    folder = tmp_path / "exported" / "SAMed2Dv1"
    for stem in (A, STEMS[4]):
        kidneys = raw_tree.mask(stem, "kidney", 0) | raw_tree.mask(stem, "kidney", 1)
        merged = np.asarray(Image.open(folder / raw_tree.mask_path(stem, "kidney", None)))
        one = np.asarray(Image.open(folder / raw_tree.mask_path(stem, "liver", 0)))
        assert (merged == kidneys * 255).all() and (one == raw_tree.mask(stem, "liver", 0) * 255).all()


def test_every_path_that_an_exported_record_names_is_there(out, tmp_path):
    export.write(out / "tables", out / "shards", tmp_path / "exported")
    records = json.loads((tmp_path / "exported" / raw_tree.GROUNDING).read_text())
    answers = [turn["value"] for record in records for turn in record["conversations"] if turn["from"] == "gpt"]
    paths = [part.partition("</mask>")[0] for answer in answers for part in answer.split("<mask>")[1:]]
    assert len(paths) == 24
    assert all((tmp_path / "exported" / "SAMed2Dv1" / path).is_file() for path in [*paths, *(record["image"] for record in records)])


def test_every_region_that_an_exported_question_marks_is_there(out, tmp_path):
    export.write(out / "tables", out / "shards", tmp_path / "exported")
    records = json.loads((tmp_path / "exported" / raw_tree.REGION).read_text())
    asked = [turn["value"] for record in records for turn in record["conversations"]]
    paths = {part.partition("</region>")[0] for text in asked for part in text.split("<region>")[1:]}
    assert len(paths) == 18 and all((tmp_path / "exported/SAMed2Dv1" / path).is_file() for path in paths)


def test_a_flat_export_is_one_clean_json_beside_images_and_masks_and_nothing_else(out, tmp_path):
    folder = tmp_path / "flat"
    export.write(raw_tree.chosen(out, "grounding"), out / "shards", folder, export.FLAT)
    assert sorted(path.name for path in folder.iterdir()) == ["grounding.json", "images", "masks"]
    records = json.loads((folder / "grounding.json").read_text())
    assert len(records) == 25
    named = {record["image"] for record in records}
    answers = [turn["value"] for record in records for turn in record["conversations"] if turn["from"] == "gpt"]
    shown = {part.partition("</mask>")[0] for answer in answers for part in answer.split("<mask>")[1:]}
    assert len(named) == 7 and len(shown) == 18
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} >= named | shown
    two = next(answer for answer in answers if answer.count("<SEG>") == 2)
    assert "<SEG><mask>masks/" in two and "_merged.png</mask>" in two
    kidneys = raw_tree.mask(A, "kidney", 0) | raw_tree.mask(A, "kidney", 1)
    assert (np.asarray(Image.open(folder / f"masks/{A}--0002_merged.png")) == kidneys * 255).all()


def test_a_flat_export_of_a_marked_region_names_the_file_of_the_union(out, tmp_path):
    export.write(raw_tree.chosen(out, "vqa"), out / "shards", tmp_path / "flat", export.FLAT)
    assert sorted(path.name for path in (tmp_path / "flat").glob("*.json")) == ["region.json", "vqa.json"]
    asked = [turn["value"] for record in json.loads((tmp_path / "flat/region.json").read_text()) for turn in record["conversations"]]
    assert any(f"<region>masks/{A}--0002_merged.png</region>" in text for text in asked)
    assert all((tmp_path / "flat" / part.partition("</region>")[0]).is_file() for text in asked for part in text.split("<region>")[1:])


@pytest.mark.parametrize("layout", [export.DOWNLOAD, export.FLAT])
def test_the_same_tables_give_the_same_export(out, tmp_path, layout):
    for name in ("one", "two"):
        export.write(out / "tables", out / "shards", tmp_path / name, layout)
    assert tables.digest(tmp_path / "one") == tables.digest(tmp_path / "two")


def test_an_export_does_not_mix_with_what_is_there(out, tmp_path):
    with pytest.raises(InputError, match="expected a folder that is not there yet, found one"):
        export.write(out / "tables", out / "shards", tmp_path)
