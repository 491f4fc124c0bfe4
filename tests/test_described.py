"""Cards of tables that belong to no release: what is counted by hand stands there, whether or not a contract was asked for."""

import json

import drawn_tables
import pytest

from unimed.config import Subset
from unimed.data import subset, tables
from unimed.errors import InputError
from unimed.release import data_card
from unimed.release.described import classes, described, parted, sources


@pytest.fixture
def folders(tmp_path):
    """The tables of a download and a subset of them that leaves things out."""
    drawn_tables.write(tmp_path / "tables", 4)
    asked = Subset(train=5, val=None, test=None, modalities=["ct", "mr"])
    subset.write(tmp_path / "tables", tmp_path / "subsets/vqa", "vqa", asked, 0)
    return tmp_path / "tables", tmp_path / "subsets/vqa"


def test_a_card_tells_of_sources_counts_and_what_was_left_out(folders, tmp_path):
    data_card.write(folders, tmp_path / "card")
    text = (tmp_path / "card/DATA.md").read_text()
    whole, part = (tables.Tables.read(folder) for folder in folders)
    for name, rows in whole.samples.groupby("dataset"):
        modalities = ", ".join(sorted(set(rows["modality"])))
        assert f"| {name} | {drawn_tables.DATASETS[name]} | {modalities} | {len(rows)} | {rows['case'].nunique()} |" in text
    held_out = part.samples[part.samples["split"] == "test"]
    split = part.counts()["conversations_by_split"]
    counted = [len(part.samples), len(part.masks), len(part.conversations), split["train"], split.get("val", 0), split.get("test", 0)]
    assert f"| vqa | {' | '.join(map(str, counted))} | {len(set(zip(held_out['dataset'], held_out['case'], strict=True)))} |" in text
    told = json.loads((folders[1] / "manifest.json").read_text())["splits"].values()
    for reason in ("of another modality", "beyond the number asked for"):
        count = sum(one["left_out"].get(reason, 0) for one in told)
        assert count and f"| vqa | conversations {reason} | {count} |" in text
    assert "| tables | masks that are faulty in the download | 1 |" in text
    assert "Not held to the data contract: tables, vqa." in text and "contract, or depend" not in text
    assert "no patient of one split is in another" in text


def test_images_masks_and_patients_that_two_folders_share_count_once(folders):
    found = {folder.name: described(folder) for folder in folders}
    whole = tables.Tables.read(folders[0])
    assert sum(source.images for source in sources(found)) == len(whole.samples)
    assert classes(found) == tables.tally(whole.masks["class_name"])


def test_croissant_names_the_files_of_every_folder(folders, tmp_path):
    data_card.write(folders, tmp_path / "card")
    content = json.loads((tmp_path / "card/croissant.json").read_text())
    names = [f"{folder}/{table}.parquet" for folder in ("tables", "vqa") for table in ("samples", "masks", "conversations")]
    assert [file["contentUrl"] for file in content["distribution"]] == names
    assert content["url"] == "https://example.org" and content["keywords"] == ["ct", "mr", "pet"]


def test_tables_without_a_manifest_have_a_card_too(folders, tmp_path):
    (folders[0] / "manifest.json").unlink()
    data_card.write([folders[0]], tmp_path / "card")
    assert "Nothing, as far as the tables say." in (tmp_path / "card/DATA.md").read_text()


def test_the_same_tables_give_the_same_card(folders, tmp_path):
    for name in ("one", "two"):
        data_card.write(folders, tmp_path / name)
    assert tables.digest(tmp_path / "one") == tables.digest(tmp_path / "two")


def test_a_patient_in_two_splits_is_on_the_card(folders, tmp_path):
    whole = tables.Tables.read(folders[0])
    case = whole.samples["case"].mode()[0]
    splits = ["train" if number % 2 else "test" for number in range(len(whole.samples))]
    samples = whole.samples.sort_values("case", kind="stable").assign(split=splits)
    both = samples.groupby(["dataset", "case"])["split"].nunique().gt(1)
    assert both[:, case].any()
    tables.Tables(samples, whole.masks, whole.conversations).write(folders[0])
    assert parted({"tables": described(folders[0])}) == both.sum()
    data_card.write([folders[0]], tmp_path / "card")
    assert f"**{both.sum()} patients are in more than one split.**" in (tmp_path / "card/DATA.md").read_text()


def test_folders_of_one_name_and_folders_without_tables_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="expected folders of different names, found one name twice"):
        data_card.write([folders[0], tmp_path / "subsets/../tables"], tmp_path / "card")
    (folders[1] / "masks.parquet").unlink()
    with pytest.raises(InputError, match=r"masks.parquet: expected a Parquet table, found none"):
        data_card.write(folders, tmp_path / "card")
    assert not (tmp_path / "card").exists()
