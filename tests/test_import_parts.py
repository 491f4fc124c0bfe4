"""Parts of an import: which token points in a checkpoint's own words, and how much of a change an adapter holds."""

import json
import shutil
from pathlib import Path

import derived
import pytest
import torch

from benchmarks import originals
from unimed.data.records import SEG
from unimed.errors import InputError
from unimed.model import foundations, imports
from unimed.model.checkpoint import Checkpoint
from unimed.model.foundations import EMBEDDING, Part, added_rows
from unimed.model.imports import seg_id
from unimed.model.low_rank import Fold

DENSE = ".deepspeed_moe.experts.deepspeed_experts.1"
"""What MedPLIB's name of a layer has that LISA's has not."""


def test_the_token_that_points_has_the_number_that_the_tokenizer_gave_it(tmp_path):
    added = [{"id": 7, "content": "<im_start>"}, {"id": 32003, "content": SEG}]
    with pytest.raises(InputError, match=r"expected added_tokens.json or tokenizer.json, found neither"):
        seg_id(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    assert seg_id(tmp_path) == 32003
    (tmp_path / "added_tokens.json").write_text(json.dumps({SEG: 32005}))
    assert seg_id(tmp_path) == 32005
    (tmp_path / "added_tokens.json").write_text("{}")
    with pytest.raises(InputError, match="expected a tokenizer that knows <SEG>, found one that does not"):
        seg_id(tmp_path)


def test_errors_are_ratios_of_norms_and_that_of_all_layers_is_no_mean_of_theirs():
    fold = Fold(rank=3)
    fold.add(2, 300.0, 0.0)
    fold.add(0, 60.0, 20.0)
    fold.add(0, 40.0, 5.0)
    assert fold.errors() == [0.5, 0.0, 0.0]
    assert fold.error() == 0.25
    assert fold.facts() == {"rank": 3, "relative_error": 0.25, "relative_error_by_layer": [0.5, 0.0, 0.0]}


def test_of_no_change_nothing_is_lost():
    fold = Fold(rank=1)
    fold.add(1, 0.0, 0.0)
    assert (fold.errors(), fold.error()) == ([0.0, 0.0], 0.0)


def test_a_checkpoint_that_points_without_several_experts_is_a_grounding_expert(tmp_path):
    """LISA's layout: MedPLIB's projection and mask model around layers that are there once."""
    places = derived.written(tmp_path / "raw")
    language, tower = derived.read_language(places["language_model"]), originals.clip(tmp_path / "again")
    mixed = derived.medplib(tmp_path / "medplib", language, tower, originals.sam_med2d(tmp_path / "again.pth"))
    dense = {name.replace(DENSE, ""): value for name, value in mixed.items() if "experts.0." not in name and ".gate.wg." not in name}
    (tmp_path / "lisa").mkdir()
    for name in ("config.json", "added_tokens.json"):
        shutil.copy(tmp_path / "medplib" / name, tmp_path / "lisa" / name)
    derived.shards(tmp_path / "lisa", dense)
    foundations.write(tmp_path / "foundation", originals.VLM, places)
    folds = imports.run(tmp_path / "lisa", tmp_path / "foundation", tmp_path, rank=4)
    assert list(folds) == ["aligned", "grounding_expert"]
    assert folds["grounding_expert"].error() < 1e-4
    assert all(change > 0 for change in folds["grounding_expert"].change)


def test_an_added_token_s_row_is_the_mean_of_the_known_ones_wherever_they_stand():
    table = torch.tensor([[1.0, 4.0], [90.0, 90.0], [3.0, 8.0], [90.0, 90.0]])  # rows of no token lie between and behind
    part = Part(Checkpoint(Path("in memory"), {Path("one"): {"embed": table}}), {EMBEDDING: "embed"}, [], torch.float32)
    rows = added_rows(part, [1, 4], known=[0, 2])
    assert rows["tokens"].tolist() == [1, 4]
    assert rows["input"].tolist() == rows["output"].tolist() == [[2.0, 6.0]] * 2
