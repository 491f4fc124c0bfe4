"""Facts are measured once: what is kept is used, and never believed when it is not what was kept."""

import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import planted
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raw_tree
from raw_tree import BOUNDS

from unimed.data import contract, fact_cache, facts, glyphs, image_facts, images, mask_facts, masks, pool, runs, tables
from unimed.data.tables import Tables
from unimed.errors import InputError

SCHEMA = pa.schema([("area", pa.int64())])
FACTS = pa.table({"area": [1, 2, 3]}, schema=SCHEMA)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A subset with its shards, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    raw_tree.ingested(raw_tree.write(tmp_path / "raw"), tmp_path)
    raw_tree.chosen(tmp_path, "grounding")
    return tmp_path


def measured(made: Path, for_text: bool = False) -> tuple[int, int]:
    """How many images and masks had to be measured."""
    folder = made / "facts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    subset = made / "subsets" / "grounding"
    return facts.measure_images(subset, made / "shards", folder, for_text), facts.measure_masks(subset, folder)


def entries(made: Path) -> list[Path]:
    return sorted((made / "cache").rglob("*.facts"))


def test_what_was_kept_comes_back_and_nothing_else_does(tmp_path):
    name = fact_cache.key("0" * 64, (masks,))
    assert fact_cache.find(tmp_path, name, SCHEMA) is None
    fact_cache.keep(tmp_path, name, FACTS)
    assert fact_cache.find(tmp_path, name, SCHEMA) == FACTS
    assert fact_cache.find(tmp_path, name, pa.schema([("other", pa.int64())])) is None
    assert fact_cache.find(tmp_path, fact_cache.key("1" * 64, (masks,)), SCHEMA) is None
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".facts"], "and no leftovers beside it"


def test_other_code_and_other_libraries_look_for_other_facts():
    names = {
        fact_cache.key("0" * 64, *one) for one in [((masks,),), ((tables,),), ((masks, tables),), ((masks,), "1.0"), ((masks,), "1.1")]
    }
    assert len(names) == 5


@pytest.mark.parametrize("spoil", [lambda content: content[:-1], lambda content: content[:40] + b"x" + content[41:], lambda content: b""])
def test_an_entry_that_was_changed_is_not_believed(tmp_path, spoil, caplog):
    name = fact_cache.key("0" * 64, (masks,))
    fact_cache.keep(tmp_path, name, FACTS)
    [entry] = tmp_path.rglob("*.facts")
    entry.write_bytes(spoil(entry.read_bytes()))
    assert fact_cache.find(tmp_path, name, SCHEMA) is None
    assert "measured again" in caplog.text


def test_an_entry_of_another_name_is_not_believed(tmp_path):
    one, other = (fact_cache.key(digit * 64, (masks,)) for digit in "01")
    fact_cache.keep(tmp_path, one, FACTS)
    fact_cache.keep(tmp_path, other, FACTS)
    first, second = sorted(tmp_path.rglob("*.facts"))
    shutil.copy(first, second)
    assert sorted(fact_cache.find(tmp_path, name, SCHEMA) is None for name in (one, other)) == [False, True]


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    fact_cache.keep(tmp_path / "file", "ab", FACTS)
    assert fact_cache.find(tmp_path / "file", "ab", SCHEMA) is None
    monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert fact_cache.folder() is None
    fact_cache.keep(None, "ab", FACTS)
    assert fact_cache.find(None, "ab", SCHEMA) is None


def test_a_second_validation_measures_nothing(made):
    assert measured(made) == (7, 18)
    assert measured(made) == (0, 0)


def test_a_second_validation_starts_no_process(made, monkeypatch):
    """Starting some takes a second, and all else of a small second validation not more."""
    path = made / "subsets" / "grounding" / "masks.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=1)
    assert pq.ParquetFile(path).metadata.num_row_groups == 18
    assert measured(made) == (7, 18)
    written = [pq.read_table(part) for part in sorted((made / "facts").glob("masks-*.parquet"))]
    monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda *given: pytest.fail("a process is started"))
    assert measured(made) == (0, 0)
    assert [pq.read_table(part) for part in sorted((made / "facts").glob("masks-*.parquet"))] == written and len(written) == 18


def test_text_is_looked_for_in_images_that_were_measured_without(made):
    assert measured(made) == (7, 18)
    assert measured(made, for_text=True) == (7, 0)
    assert measured(made, for_text=True) == measured(made) == (0, 0), "and neither takes the place of the other"


def test_only_what_changed_is_measured_again(made):
    measured(made)
    source = made / "subsets" / "grounding"
    whole = Tables.read(source)
    whole.masks.loc[0, "rle"] = masks.encode(raw_tree.mask(raw_tree.STEMS[0], "kidney", 0))
    whole.write(source)
    assert measured(made) == (0, 18), "a row group of masks is one thing"
    with (made / "shards" / "shard-000000.tar").open("ab") as shard:
        shard.write(b"more")
    assert measured(made) == (7, 0), "and so is a shard"


@pytest.mark.parametrize("side", ["height", "width"])
def test_run_lengths_of_another_size_are_other_masks(made, side):
    measured(made)
    source = made / "subsets" / "grounding"
    whole = Tables.read(source)
    whole.masks.loc[0, side] = 7
    whole.write(source)
    assert measured(made) == (0, 18)


@pytest.mark.parametrize(
    ("module", "again"), [(image_facts, (7, 0)), (images, (7, 0)), (glyphs, (7, 0)), (mask_facts, (0, 18)), (runs, (0, 18))]
)
def test_what_other_code_would_measure_is_measured_again(made, monkeypatch, module, again):
    measured(made, for_text=True)
    monkeypatch.setattr(module, "__file__", planted.altered(module, made))
    assert measured(made, for_text=True) == again


def test_a_subset_that_asks_for_more_of_a_shard_has_only_that_measured(made):
    source = made / "subsets" / "grounding"
    whole = Tables.read(source)
    Tables(whole.samples.iloc[:3], whole.masks, whole.conversations).write(source)
    assert measured(made)[0] == 3
    whole.write(source)
    assert measured(made)[0] == 4
    assert measured(made)[0] == 0, "what was known before is kept beside it"


def test_spoilt_facts_change_no_verdict(made):
    contract.write(made / "subsets" / "grounding", made / "shards", made / "one", BOUNDS)
    for entry in entries(made):
        entry.write_bytes(entry.read_bytes()[:-3] + b"abc")
    contract.write(made / "subsets" / "grounding", made / "shards", made / "two", BOUNDS)
    assert tables.digest(made / "one") == tables.digest(made / "two")
    assert measured(made) == (0, 0), "the cache is mended"


def test_facts_of_a_shard_do_not_pass_for_those_of_another(made):
    """The image of another shard is what it is, whatever is known of the shard of the same name before."""
    measured(made)
    row = Tables.read(made / "subsets" / "grounding").samples.iloc[0]
    with (made / "shards" / str(row["shard"])).open("r+b") as shard:
        shard.seek(int(row["offset"]) + 60)
        shard.write(bytes(40))
    with pytest.raises(InputError, match="image_bytes .* broken by 1 of 7 samples"):
        contract.write(made / "subsets" / "grounding", made / "shards", made / "valid", BOUNDS)


def validate(place: Path, name: str) -> str:
    contract.write(place / "subsets" / "grounding", place / "shards", place / name, BOUNDS)
    return tables.digest(place / name)


@pytest.mark.slow
def test_two_validations_at_once_are_both_right(made):
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        found = [pool.submit(validate, made, name) for name in ("one", "two")]
        digests = {one.result() for one in found}
    assert len(digests) == 1
    assert json.loads((made / "one" / "verdict.json").read_text())["kept"]["masks"] == 18
    assert measured(made) == (0, 0)


def test_nothing_is_known_of_a_shard_that_is_not_there(made):
    for shard in ("shard-000009.tar", "../raw/SAMed2Dv1/SAMed2D_v1.json"):
        asked = image_facts.Asked(shard, np.array([[0, 512]]), made / "facts.parquet")
        assert image_facts.looked_up(asked, made / "shards", made) is asked
