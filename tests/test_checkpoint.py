"""Reading other people's files: one tensor at a time, nothing that runs code, damage and disagreement by name."""

import json
import os

import derived
import pytest
import torch
from safetensors.torch import load_file, save_file

from unimed.errors import InputError
from unimed.model import checkpoint

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16), "c.bias": torch.zeros(1)}


class Command:
    """What an attacker puts into a pickle."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("pickled", [True, False])
def test_parts_with_an_index_are_one_checkpoint(tmp_path, pickled):
    derived.shards(tmp_path, TENSORS, pickled=pickled)
    found = checkpoint.read(tmp_path)
    assert found.shapes == {"a.weight": (2, 3), "b.weight": (4,), "c.bias": (1,)}
    assert len(found.files) == 3
    for name, value in TENSORS.items():
        assert torch.equal(found.tensor(name), value)
    assert found.dtype(["b.weight"]) == torch.bfloat16
    with pytest.raises(KeyError):
        found.tensor("d")


@pytest.mark.parametrize(("name", "write"), [("model.safetensors", save_file), ("pytorch_model.bin", torch.save)])
def test_one_file_is_a_checkpoint_in_a_folder_and_alone(tmp_path, name, write):
    write(TENSORS, tmp_path / name)
    for place in (tmp_path, tmp_path / name):
        assert torch.equal(checkpoint.read(place).tensor("a.weight"), TENSORS["a.weight"])


def test_safetensors_are_preferred_where_both_lie(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert checkpoint.read(tmp_path).shapes.keys() == TENSORS.keys()


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1), "b": Command()}, tmp_path / "sam.pth")
    with pytest.raises(InputError, match=r"sam.pth: expected tensors and nothing else"):
        checkpoint.read(tmp_path / "sam.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, {"model": [1]}])
def test_a_file_without_tensors_by_name_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "sam.pth")
    with pytest.raises(InputError, match="expected tensors by name, found other values"):
        checkpoint.read(tmp_path / "sam.pth")


@pytest.mark.parametrize("name", ["sam.pth", "model.safetensors"])
def test_half_a_file_is_refused_by_name(tmp_path, name):
    (save_file if name.endswith("tensors") else torch.save)(TENSORS, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"{name}: expected a "):
        checkpoint.read(tmp_path / name)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"expected model.safetensors or pytorch_model.bin, or an index of parts, found neither"):
        checkpoint.read(tmp_path)


def test_an_index_must_tell_the_truth_and_stay_in_its_folder(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    derived.shards(folder, TENSORS, pickled=False)
    save_file({"a.weight": torch.zeros(2, 3)}, tmp_path / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    for change, sentence in (
        ({"a.weight": listed["b.weight"]}, r"found 1 elsewhere or missing \(a.weight\)"),
        ({"d.weight": listed["b.weight"]}, r"found 1 elsewhere or missing \(d.weight\)"),
        ({"a.weight": "../secret.safetensors"}, r"expected the file ../secret.safetensors beside it, found none"),
        ({"a.weight": "lost.safetensors"}, "expected the file lost.safetensors beside it, found none"),
    ):
        index.write_text(json.dumps({"weight_map": listed | change}))
        with pytest.raises(InputError, match=sentence):
            checkpoint.read(folder)
    assert listed["a.weight"] < listed["b.weight"]
    save_file(load_file(folder / listed["a.weight"]) | {"b.weight": torch.zeros(1)}, folder / listed["a.weight"])
    index.write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(InputError, match=r"found 1 elsewhere or missing \(b.weight\)"):  # it is in two
        checkpoint.read(folder)
    index.write_text("[]")
    with pytest.raises(InputError, match="expected a weight_map"):
        checkpoint.read(folder)


def test_all_differences_are_counted_and_the_first_three_of_a_kind_named(tmp_path):
    expected = {f"layer.{number}": (2, 2) for number in range(9)}
    found = {name: (2, 3) if name == "layer.0" else shape for name, shape in expected.items() if name < "layer.4"} | {"other": (1,)}
    with pytest.raises(InputError) as caught:
        checkpoint.check(found, expected, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: expected exactly the 9 tensors of its configuration, found 5 missing (layer.4, layer.5, layer.6, ...), "
        "1 unexpected (other), 1 of another shape (layer.0 (2, 3) for (2, 2))"
    )
    checkpoint.check(expected, expected, tmp_path)


def test_the_first_rule_that_fits_the_whole_name_counts(tmp_path):
    rules = ((r"old\.bias", None), (r"old\.(.*)", r"new.\1"), (r"new\.x", "never"))
    names, aside = checkpoint.renamed(["old.bias", "old.weight", "very.old.weight"], rules, tmp_path)
    assert names == {"new.weight": "old.weight", "very.old.weight": "very.old.weight"}
    assert aside == ["old.bias"]
    with pytest.raises(InputError, match=r"expected one tensor for new.a, found new.a and old.a"):
        checkpoint.renamed(["new.a", "old.a"], rules, tmp_path)
