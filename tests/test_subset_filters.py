"""Filters of subsets: what is taken passes all of them, what is left out is counted with its reason, on tables drawn at random."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import drawn_tables
import numpy as np
import pytest

from unimed.config import Subset
from unimed.data import choice, splits, sql, subset, tables
from unimed.data.tables import SPLITS, Tables
from unimed.errors import InputError

ALL = {"train": None, "val": None, "test": None}


def made(source: Path, task: str, seed: int = 0, **asked: Any) -> tuple[Tables, dict[str, Any]]:
    folder = source.parent / "subset"
    subset.write(source, folder, task, Subset(**ALL | asked), seed)
    return Tables.read(folder), json.loads((folder / "manifest.json").read_text())


def rows(whole: Tables, task: str) -> Iterator[dict[str, Any]]:
    """The conversations of a task, each with its image's columns and the classes that it names in order."""
    samples = {row["sample_id"]: row for row in whole.samples.to_dict("records")}
    classes = dict(zip(whole.masks["mask_id"], whole.masks["class_name"], strict=True))
    for row in whole.conversations.to_dict("records"):
        if row["task"] in subset.TASKS[task]:
            named = [classes[mask_id] for mask_id in subset.mask_ids(row["turns"])]
            yield samples[row["sample_id"]] | row | {"classes": named, "class": named[0] if named else ""}


def reason(row: dict[str, Any], asked: Subset) -> str | None:
    """The first filter that leaves a conversation out, by the words of the configuration."""
    for name, fails in {
        "excluded_sources": row["source"] in asked.excluded_sources,
        "excluded_datasets": row["dataset"] in asked.excluded_datasets,
        "licences": asked.licences is not None and row["licence"] not in asked.licences,
        "datasets": asked.datasets is not None and row["dataset"] not in asked.datasets,
        "modalities": asked.modalities is not None and row["modality"] not in asked.modalities,
        "classes": asked.classes is not None and not set(row["classes"]) <= set(asked.classes),
    }.items():
        if fails:
            return name
    return None


def drawn(seed: int) -> Subset:
    """Some filters and numbers; each filter is set in half of the draws."""
    rng = np.random.default_rng(seed)

    def some(names: Any, least: int = 1) -> list[str] | None:
        return sorted(rng.permutation(list(names))[: int(rng.integers(least, len(names)))].tolist()) if rng.random() < 0.5 else None

    return Subset(
        train=None if rng.random() < 0.5 else int(rng.integers(1, 9)),
        val=int(rng.integers(1, 5)),
        test=None,
        modalities=some(drawn_tables.MODALITIES, 2),
        datasets=some(drawn_tables.DATASETS, 2),
        classes=some(drawn_tables.CLASSES, 2),
        licences=some(drawn_tables.DATASETS.values(), 2),
        excluded_datasets=(some(drawn_tables.DATASETS) or [])[:1],
        excluded_sources=some(drawn_tables.SOURCES) or [],
    )


def in_turn(about: list[dict[str, Any]], seed: int) -> list[str]:
    """The order in which conversations are drawn: one of each stratum in turn, strata and rows by splits.rank."""
    strata: dict[tuple[str, ...], list[str]] = {}
    for row in about:
        strata.setdefault((row["modality"], row["question_type"], row["class"]), []).append(row["conversation_id"])
    ordered = [
        sorted(strata[key], key=lambda name: splits.rank(seed, name)) for key in sorted(strata, key=lambda key: splits.rank(seed, *key))
    ]
    return [name for round_ in zip_longest(*ordered) for name in round_ if name is not None]


@pytest.mark.parametrize("seed", range(12))
def test_what_is_taken_and_what_is_left_out_are_all_there_is_and_each_for_its_reason(seed, tmp_path):
    whole = drawn_tables.write(tmp_path / "tables", seed)
    task, asked = list(subset.TASKS)[seed % 4], drawn(seed)
    about = list(rows(whole, task))
    if not [row for row in about if row["split"] == "train" and reason(row, asked) is None]:
        with pytest.raises(InputError, match="expected at least one train conversation"):
            made(tmp_path / "tables", task, seed, **asked.model_dump())
        return
    chosen, manifest = made(tmp_path / "tables", task, seed, **asked.model_dump())
    taken = set(chosen.conversations["conversation_id"])
    for split in SPLITS:
        available = [row for row in about if row["split"] == split]
        passing = [row for row in available if reason(row, asked) is None]
        expected = in_turn(passing, seed)[: getattr(asked, split)]
        assert {row["conversation_id"] for row in available} & taken == set(expected)
        told = manifest["splits"][split]
        reasons = Counter(choice.FILTERS[name] for row in available if (name := reason(row, asked)))
        beyond = {choice.BEYOND: len(passing) - len(expected)} if len(passing) > len(expected) else {}
        assert told == {
            "asked": getattr(asked, split), "available": len(available), "taken": len(expected), "left_out": reasons | beyond
        }  # fmt: skip
        assert told["taken"] + sum(told["left_out"].values()) == told["available"]
    assert manifest["available"] == len(about) == len(whole.conversations) - manifest["of_other_tasks"]


@pytest.mark.parametrize("seed", range(3))
def test_a_subset_is_closed_counted_and_the_same_bytes_twice(seed, tmp_path):
    whole = drawn_tables.write(tmp_path / "tables", seed)
    for task in ("vqa", "grounding"):
        chosen, manifest = made(tmp_path / "tables", task, seed, train=6)
        digest = tables.digest(tmp_path / "subset")
        masks = {row["mask_id"]: row for row in whole.masks.to_dict("records")}
        named = {name for turns in chosen.conversations["turns"] for name in subset.mask_ids(turns)}
        unions = {(masks[name]["sample_id"], masks[name]["class_id"]) for name in named if masks[name]["instance"] < 0}
        parts = {name for name, row in masks.items() if (row["sample_id"], row["class_id"]) in unions}
        assert set(chosen.masks["mask_id"]) == named | parts
        assert set(chosen.samples["sample_id"]) == set(chosen.conversations["sample_id"])
        assert manifest["counts"] == chosen.counts()
        made(tmp_path / "tables", task, seed, train=6)
        assert tables.digest(tmp_path / "subset") == digest
        chosen.write(tmp_path / "again")
        for file in ("samples", "masks", "conversations"):
            assert (tmp_path / f"again/{file}.parquet").read_bytes() == (tmp_path / f"subset/{file}.parquet").read_bytes()


@pytest.mark.parametrize("seed", range(3))
def test_no_case_and_no_copy_of_a_case_is_in_two_splits_of_any_subset(seed, tmp_path):
    drawn_tables.write(tmp_path / "tables", seed)
    split: dict[str, set[str]] = {}
    prints: dict[str, set[str]] = {}
    for task in subset.TASKS:
        for row in made(tmp_path / "tables", task)[0].samples.to_dict("records"):
            split.setdefault(f"{row['dataset']}/{row['case']}", set()).add(row["split"])
            prints.setdefault(row["fingerprint"], set()).add(row["split"])
    assert len(split) > 10 and all(len(found) == 1 for found in [*split.values(), *prints.values()])


def test_counts_are_those_of_a_tally_by_hand(tmp_path):
    whole = drawn_tables.write(tmp_path / "tables", 1)
    chosen, manifest = made(tmp_path / "tables", "grounding", train=5, modalities=["ct", "mr"])
    about, taken = list(rows(whole, "grounding")), set(chosen.conversations["conversation_id"])
    by_hand = {
        "modality": [(row["modality"], row["conversation_id"]) for row in about],
        "dataset": [(row["dataset"], row["conversation_id"]) for row in about],
        "source": [(row["source"], row["conversation_id"]) for row in about],
        "class": [(name, row["conversation_id"]) for row in about for name in set(row["classes"])],
    }
    for kind, pairs in by_hand.items():
        available, kept = Counter(value for value, _ in pairs), Counter(value for value, name in pairs if name in taken)
        expected = {value: {"available": available[value], "taken": kept[value]} for value in available}
        assert manifest["conversations_by"][kind] == expected
    assert manifest["counts"]["masks_by_class"] == tables.tally(chosen.masks["class_name"])
    assert manifest["counts"]["conversations_by_question_type"] == tables.tally(chosen.conversations["question_type"])
    assert manifest["counts"]["samples_by_split"] == tables.tally(chosen.samples["split"])


def test_each_filter_counts_all_that_it_leaves_out_also_what_another_leaves_out_before(tmp_path):
    whole = drawn_tables.write(tmp_path / "tables", 2)
    asked = {"datasets": ["SetA", "SetB"], "modalities": ["ct", "mr"], "excluded_sources": ["two.json"]}
    _, manifest = made(tmp_path / "tables", "vqa", **asked)
    about = list(rows(whole, "vqa"))
    assert manifest["filters"] == {
        "excluded_sources": {"asked": ["two.json"], "leaves_out": sum(row["source"] == "two.json" for row in about)},
        "datasets": {"asked": ["SetA", "SetB"], "leaves_out": sum(row["dataset"] == "SetC" for row in about)},
        "modalities": {"asked": ["ct", "mr"], "leaves_out": sum(row["modality"] == "pet" for row in about)},
    }
    assert sum(entry["leaves_out"] for entry in manifest["filters"].values()) > sum(
        count for split in manifest["splits"].values() for count in split["left_out"].values()
    )


def test_a_conversation_that_names_no_mask_is_of_every_class(tmp_path):
    whole = drawn_tables.write(tmp_path / "tables", 3)
    chosen, _ = made(tmp_path / "tables", "grounding", classes=["liver"])
    bare = {row["conversation_id"] for row in rows(whole, "grounding") if not row["classes"]}
    assert bare and bare <= set(chosen.conversations["conversation_id"])


@pytest.mark.parametrize(
    ("name", "wanted", "known"),
    [
        ("modalities", ["ct", "xray"], r"ct, mr, pet\), found 'xray'"),
        ("datasets", ["SetZ"], r"SetA, SetB, SetC\), found 'SetZ'"),
        ("classes", ["spleen"], r"heart, kidney, liver, nodule\), found 'spleen'"),
        ("excluded_datasets", ["setA"], r"SetA, SetB, SetC\), found 'setA'"),
        ("excluded_sources", ["four.json"], r"one.json, three.json, two.json\), found 'four.json'"),
    ],
)
def test_a_filter_that_names_what_is_not_there_is_an_error_that_says_what_is(name, wanted, known, tmp_path):
    drawn_tables.write(tmp_path / "tables", 0)
    with pytest.raises(InputError, match=rf"^subsets.vqa.{name}: expected names that the tables have \({known}$"):
        made(tmp_path / "tables", "vqa", **{name: wanted})
    assert not (tmp_path / "subset").exists()


def test_an_allow_list_of_licences_may_name_more_than_there_is_and_what_it_leaves_is_told(tmp_path):
    drawn_tables.write(tmp_path / "tables", 0)
    chosen, _ = made(tmp_path / "tables", "vqa", licences=["CC0-1.0", "CC-BY-SA-4.0"])
    assert set(chosen.samples["licence"]) == {"CC0-1.0"}
    with pytest.raises(InputError, match=r"found none \(train \d+, val \d+, test \d+; left out: \d+ under a licence that is not allowed\)"):
        made(tmp_path / "tables", "vqa", licences=[])


def test_the_class_of_a_conversation_is_that_of_its_first_target_though_a_region_stands_before_it(tmp_path):
    whole = drawn_tables.write(tmp_path / "tables", 0)
    region, target = (whole.masks[whole.masks["class_name"] == name].iloc[0] for name in ("heart", "nodule"))
    turns = [
        {"question": "?", "answer": "!", "regions": [region["mask_id"]], "targets": []},
        {"question": "?", "answer": "!", "regions": [], "targets": [[target["mask_id"], region["mask_id"]]]},
    ]
    said = whole.conversations.assign(task="grounding", turns=json.dumps(turns))
    Tables(whole.samples, whole.masks, said).write(tmp_path / "tables")
    with sql.opened(**{name: tmp_path / f"tables/{name}.parquet" for name in ("samples", "masks", "conversations")}) as connection:
        choice.choose(connection, ("grounding",), Subset(**ALL), 0)
        assert connection.sql("SELECT DISTINCT class, list_sort(classes) FROM judged").fetchall() == [("nodule", ["heart", "nodule"])]
        first = said["conversation_id"][0]
        named = connection.execute("SELECT mask_id FROM named WHERE conversation_id = $id ORDER BY place", {"id": first}).fetchall()
    assert [row[0] for row in named] == subset.mask_ids(json.dumps(turns))
