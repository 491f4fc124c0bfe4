"""Subsets: drawn evenly and by hash, told in a manifest, and read back as samples that hold every conversation once."""

import json
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
import pytest
import raw_tree
from raw_tree import ALL, STEMS

from unimed.config import Subset, Subsets
from unimed.data import samples, subset, tables
from unimed.data.tables import SPLITS, Tables
from unimed.errors import InputError


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    raw_tree.ingested(raw_tree.write(folder / "raw"), folder)
    for task in subset.TASKS:
        raw_tree.chosen(folder, task)
    return folder


def grouped(sizes: dict[tuple[str, str], int]) -> Tables:
    """Tables whose conversations come grouped by modality and question type, as in a file written source by source."""
    kinds = [kind for kind, count in sizes.items() for _ in range(count)]
    blank = dict.fromkeys(tables.CONVERSATIONS.names, "") | {"task": "vqa", "turns": "[]", "source": "file.json"}
    whole = dict.fromkeys(tables.SAMPLES.names, "") | {"height": 1, "width": 1, "offset": 0, "size": 1, "split": "train"}
    return Tables(
        samples=tables.frame(({**whole, "sample_id": f"{n}", "modality": kind[0]} for n, kind in enumerate(kinds)), tables.SAMPLES),
        masks=tables.frame([], tables.MASKS),
        conversations=tables.frame(
            ({**blank, "conversation_id": f"c{n}", "sample_id": f"{n}", "question_type": kind[1]} for n, kind in enumerate(kinds)),
            tables.CONVERSATIONS,
        ),
    )


def of_train(number: int | None, **filters: list[str] | None) -> Subset:
    return Subset(train=number, val=None, test=None, **filters)


@pytest.fixture
def select(tmp_path_factory):
    """A function that writes the subset of some tables and gives it back with its manifest."""

    def selected(whole: Tables, task: str, asked: Subset, seed: int = 0) -> tuple[Tables, dict]:
        folder = tmp_path_factory.mktemp("tables")
        whole.write(folder)
        tables.write_json(folder / "manifest.json", {})
        subset.write(folder, folder / "subset", task, asked, seed)
        return Tables.read(folder / "subset"), json.loads((folder / "subset/manifest.json").read_text())

    return selected


def test_a_small_subset_holds_every_stratum_though_the_file_is_grouped(select):
    whole = grouped({("ct", "side"): 500, ("ct", "detail"): 300, ("mr", "side"): 6, ("pet", "other"): 2})
    made, _ = select(whole, task="vqa", asked=of_train(20), seed=0)
    about = made.conversations.merge(made.samples, on="sample_id")
    assert Counter(zip(about["modality"], about["question_type"], strict=True)) == {
        ("ct", "side"): 6, ("ct", "detail"): 6, ("mr", "side"): 6, ("pet", "other"): 2
    }  # fmt: skip


def test_what_is_drawn_within_a_stratum_is_spread_over_it(select):
    made, _ = select(grouped({("ct", "side"): 1000}), task="vqa", asked=of_train(100), seed=0)
    places = made.conversations["conversation_id"].str[1:].astype(int)
    assert 400 < places.mean() < 600 and places.max() > 900


def test_a_larger_subset_contains_the_smaller_and_the_seed_changes_both(select):
    whole = grouped({("ct", "side"): 50, ("mr", "side"): 50})
    ids = [
        set(select(whole, "vqa", of_train(count), seed)[0].conversations["conversation_id"]) for count, seed in [(10, 0), (30, 0), (10, 1)]
    ]
    assert ids[0] < ids[1] and ids[0] != ids[2]


def test_the_manifest_says_what_was_asked_taken_and_left_out(select):
    _, manifest = select(grouped({("ct", "side"): 50}), task="vqa", asked=of_train(10), seed=0)
    assert manifest["splits"]["train"] == {"asked": 10, "available": 50, "taken": 10, "left_out": {"beyond the number asked for": 40}}
    assert manifest["counts"]["conversations_by_modality"] == {"ct": 10}


def test_asking_for_more_than_there_is_takes_all_of_it(select):
    made, manifest = select(grouped({("ct", "side"): 5}), task="vqa", asked=of_train(10), seed=0)
    assert len(made.conversations) == 5 and manifest["splits"]["train"]["left_out"] == {}


def test_a_subset_holds_one_task_and_only_what_it_names(out):
    for task, kinds in subset.TASKS.items():
        made = Tables.read(out / "subsets" / task)
        assert set(made.conversations["task"]) == set(kinds)
        assert set(made.samples["sample_id"]) == set(made.conversations["sample_id"])
    assert len(Tables.read(out / "subsets" / "alignment").masks) == 0


def test_the_same_tables_give_the_same_bytes(out, tmp_path):
    for name in ("one", "two"):
        subset.write(out / "tables", tmp_path / name, task="grounding", asked=Subset(train=5, val=1, test=1), seed=7)
    assert tables.digest(tmp_path / "one") == tables.digest(tmp_path / "two")


def test_nothing_to_train_on_is_an_error_that_says_what_there_is(out, tmp_path):
    whole = Tables.read(out / "tables")
    held_out = whole.samples.assign(split="test")
    Tables(held_out, whole.masks, whole.conversations).write(tmp_path / "tables")
    tables.write_json(tmp_path / "tables" / "manifest.json", {})
    with pytest.raises(InputError, match=r"expected at least one train conversation of task 'vqa', found none \(train 0, val 0, test 26\)"):
        subset.write(tmp_path / "tables", tmp_path / "subset", task="vqa", asked=ALL, seed=0)


def test_an_unknown_task_is_named():
    with pytest.raises(InputError, match="--task: expected one of alignment, vqa, grounding, reasoning, found 'poetry'"):
        subset.asked_of(Subsets(alignment=ALL, vqa=ALL, grounding=ALL, reasoning=ALL), "poetry")


def test_tables_of_another_shape_are_refused_with_both_shapes(out, tmp_path):
    (tmp_path / "tables").mkdir()
    pd.DataFrame({"sample_id": ["a"]}).to_parquet(tmp_path / "tables" / "samples.parquet")
    with pytest.raises(InputError, match=r"samples.parquet: expected columns sample_id string, .*, found sample_id"):
        Tables.read(tmp_path / "tables")
    with pytest.raises(InputError, match=r"samples.parquet: expected a Parquet table, found none"):
        Tables.read(tmp_path)


def read(out, task, split, **more):
    return samples.read(out / "subsets" / task, out / "shards", split, **more)


@pytest.mark.parametrize("turns", [1, 2, 3, 50])
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_holds_every_conversation_once(out, turns, epoch):
    asked = Counter(
        turn.conversation_id for split in SPLITS for item in read(out, "vqa", split, turns=turns, epoch=epoch) for turn in item.turns
    )
    table = Tables.read(out / "subsets" / "vqa").conversations
    assert asked == {row["conversation_id"]: len(json.loads(row["turns"])) for row in table.to_dict("records")}


def test_conversations_about_an_image_are_joined_up_to_the_number_of_turns(out):
    items = list(read(out, "vqa", "train", turns=3))
    assert max(len(item.turns) for item in items) == 3
    assert len(items) < len(read(out, "vqa", "train"))
    assert all(item.sample_id in turn.conversation_id for item in items for turn in item.turns)


def test_epochs_join_in_another_order_and_a_seed_repeats_it(out):
    first = read(out, "vqa", "train", turns=4, seed=5)
    order = [[[turn.question for turn in item.turns] for item in view] for view in (first, first.at_epoch(1), first.at_epoch(0))]
    assert order[0] == order[2] != order[1]


def test_a_sample_shows_the_pixels_and_masks_that_were_downloaded(out):
    seen = {turn.conversation_id: (item, turn) for split in SPLITS for item in read(out, "grounding", split) for turn in item.turns}
    for stem in STEMS[:-1]:
        item, turn = seen[f"{stem}--g2"]
        kidneys = raw_tree.mask(stem, "kidney", 0) | raw_tree.mask(stem, "kidney", 1)
        assert [target.tolist() for target in turn.targets] == [kidneys.tolist(), raw_tree.mask(stem, "liver", 0).tolist()]
        assert np.asarray(item.load_image()).shape == (*raw_tree.size(stem), 3)
        assert (item.case, item.modality) == ("/".join(stem.split("--")[1:3]), stem.partition("_")[0])


def test_regions_are_masks_in_the_order_of_their_marks(out):
    seen = {turn.conversation_id: turn for split in SPLITS for item in read(out, "vqa", split) for turn in item.turns}
    liver, kidneys = seen[f"{STEMS[0]}--r2"].regions
    assert (liver == raw_tree.mask(STEMS[0], "liver", 0)).all()
    assert (kidneys == raw_tree.mask(STEMS[0], "kidney", 0) | raw_tree.mask(STEMS[0], "kidney", 1)).all()


def test_reasoning_turns_carry_options_solution_and_rationale(out):
    turn = read(out, "reasoning", "train")[0].turns[0]
    assert turn.options == ("ct", "mr", "ultrasound")
    assert turn.answer == turn.solution and turn.rationale == "It looks like it."


def test_samples_travel_to_other_processes(out):
    whole = read(out, "grounding", "train", turns=4)
    with ProcessPoolExecutor(1) as pool:
        assert pool.submit(list, whole).result() == list(whole)


def test_an_unknown_split_is_named(out):
    with pytest.raises(InputError, match="split: expected one of train, val, test, found 'dev'"):
        read(out, "vqa", "dev")
