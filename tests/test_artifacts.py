"""Sealed folders: a flipped byte, a missing file, another parent or a path that leads out is an error that says so."""

import json

import pytest
import tiny
import torch
from safetensors.torch import save_file

from unimed.errors import InputError
from unimed.model import adapters, artifacts, assemble, weights

TENSORS = {"b.weight": torch.arange(6.0).view(2, 3), "a": torch.ones(2)}


@pytest.fixture
def folder(tmp_path):
    """A sealed folder beside its parent."""
    weights.write(tmp_path / "foundation", {"x": torch.zeros(1)}, {})
    weights.write(tmp_path / "aligned", TENSORS, {"foundation": tmp_path / "foundation"}, history=[{"loss": 1.5}])
    return tmp_path / "aligned"


def rewrite(folder, change) -> None:
    """Change the manifest as an attacker or an accident would."""
    path = folder / artifacts.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_what_was_written_is_read(folder):
    torch.testing.assert_close(weights.read(folder), TENSORS, atol=0, rtol=0)
    assert artifacts.verify(folder)["history"] == [{"loss": 1.5}]
    assert artifacts.parent(folder, "foundation") == folder.parent / "foundation"


def test_the_same_tensors_give_the_same_bytes_in_any_order(folder, tmp_path):
    backwards = dict(reversed(TENSORS.items()))
    weights.write(tmp_path / "again", backwards, {"foundation": tmp_path / "foundation"}, history=[{"loss": 1.5}])
    for name in (artifacts.WEIGHTS, artifacts.MANIFEST):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_flipped_byte_is_an_error_with_file_expected_and_found(folder):
    file = folder / artifacts.WEIGHTS
    expected, content = artifacts.sha256(file), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        weights.read(folder)
    assert str(caught.value) == f"{file}: expected sha256 {expected}, found {artifacts.sha256(file)}"


def test_a_missing_file_is_an_error_with_its_name(folder):
    (folder / artifacts.WEIGHTS).unlink()
    with pytest.raises(InputError, match=f"{artifacts.MANIFEST}: expected the file {artifacts.WEIGHTS}, found none"):
        artifacts.verify(folder)


@pytest.mark.parametrize("name", ["extra.safetensors", "cold_start/adapter_config.json"])
def test_a_file_that_the_manifest_does_not_know_is_an_error_with_its_name(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    with pytest.raises(InputError, match=f"{artifacts.MANIFEST}: expected a list of all files of its folder, found nothing about {name}"):
        weights.read(folder)


def test_weights_that_the_manifest_does_not_know_are_never_loaded(tmp_path):
    """An expert without tensors of its own, to which someone has added some."""
    made = assemble.Assembled(tiny.stirred(), tiny.processor())
    places = {name: tmp_path / name for name in ("foundation", "aligned", "vqa")}
    assemble.write_foundation(places["foundation"], made)
    weights.write(places["aligned"], weights.named(made.model, assemble.ALIGNED), {})
    adapters.add(made.model.model.language_model, "vqa", 2, 2.0, tiny.TARGETS)
    adapters.write(places["vqa"], adapters.taken(made.model.model.language_model, "vqa"))
    artifacts.seal(places["vqa"], {})
    assemble.expert(*places.values(), "vqa")
    save_file({"grounding.seg_input": torch.zeros(32)}, places["vqa"] / artifacts.WEIGHTS)
    with pytest.raises(InputError, match=f"found nothing about {artifacts.WEIGHTS}"):
        assemble.expert(*places.values(), "vqa")


def test_a_folder_without_tensors_cannot_stand_where_tensors_are_expected(tmp_path):
    tmp_path.joinpath("adapter_config.json").write_text("{}")
    artifacts.seal(tmp_path, {})
    with pytest.raises(InputError, match=f"expected {artifacts.WEIGHTS} among its files, found none"):
        weights.read(tmp_path)


def test_a_sealed_folder_may_hold_another_as_the_foundation_does(tmp_path):
    weights.write(tmp_path / "mask", TENSORS, {})
    (tmp_path / "config.json").write_text("{}")
    artifacts.seal(tmp_path, {})
    assert list(artifacts.verify(tmp_path)["files"]) == ["config.json", f"mask/{artifacts.MANIFEST}", f"mask/{artifacts.WEIGHTS}"]
    assert weights.read(tmp_path / "mask").keys() == TENSORS.keys()
    (tmp_path / "mask" / artifacts.MANIFEST).write_text("{}")
    with pytest.raises(InputError, match=f"mask/{artifacts.MANIFEST}: expected sha256"):
        artifacts.verify(tmp_path)


def test_a_folder_without_a_manifest_is_an_error_with_its_name(tmp_path):
    with pytest.raises(InputError, match=f"expected a model folder with a manifest.json, found none in {tmp_path}"):
        artifacts.verify(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", "\xff"])
def test_a_manifest_that_is_none_is_an_error_with_its_name(folder, content):
    path = folder / artifacts.MANIFEST
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=f"{path}: expected a manifest with files and parents, found"):
        artifacts.verify(folder)


@pytest.mark.parametrize("inside", [True, False])
def test_a_path_that_leads_out_of_the_folder_is_refused(folder, inside):
    outside = folder.parent / "secret.txt"
    outside.write_text("secret")
    name = "../secret.txt" if inside else str(outside)
    rewrite(folder, lambda manifest: manifest["files"].update({name: artifacts.sha256(outside)}))
    with pytest.raises(InputError, match=f"expected the file {name}, found none"):
        artifacts.verify(folder)


def test_a_link_that_leads_out_of_the_folder_is_refused(folder):
    outside = folder.parent / "secret.txt"
    outside.write_text("secret")
    (folder / "link.txt").symlink_to(outside)
    rewrite(folder, lambda manifest: manifest["files"].update({"link.txt": artifacts.sha256(outside)}))
    with pytest.raises(InputError, match="expected the file link.txt, found none"):
        artifacts.verify(folder)


def test_another_parent_than_the_recorded_one_is_refused(folder):
    weights.write(folder.parent / "foundation", {"x": torch.ones(1)}, {})
    with pytest.raises(InputError, match="foundation with manifest sha256 [0-9a-f]{64}, found another or none"):
        artifacts.parent(folder, "foundation")


def test_a_parent_is_looked_for_beside_the_folder_and_nowhere_else(folder):
    elsewhere = folder.parent / "far" / "away" / "foundation"
    weights.write(elsewhere, {"x": torch.ones(1)}, {})
    record = {"path": "far/away/foundation", "sha256": artifacts.sha256(elsewhere / artifacts.MANIFEST)}
    rewrite(folder, lambda manifest: manifest["parents"].update({"foundation": record}))
    with pytest.raises(InputError, match="found another or none"):
        artifacts.parent(folder, "foundation")


def test_a_parent_that_was_never_recorded_is_an_error_with_those_that_were(folder):
    with pytest.raises(InputError, match=r"expected a parent router, found \['foundation'\]"):
        artifacts.parent(folder, "router")


def test_tensors_return_to_the_model_they_came_from(tmp_path):
    model, other = tiny.stirred(), tiny.fresh()
    names = ["model.projector", "grounding.seg_input", "model.encoder.fusions.1"]
    weights.write(tmp_path, weights.named(model, names), {})
    before = {name: value.clone() for name, value in other.state_dict().items()}
    weights.load(other, weights.read(tmp_path), tmp_path)
    taken = {name for name, value in other.state_dict().items() if not torch.equal(value, before[name])}
    assert taken == {name for name in before if name == names[1] or name.startswith((names[0] + ".", names[2] + "."))}
    assert all(torch.equal(other.state_dict()[name], model.state_dict()[name]) for name in taken)


def test_a_module_s_tensors_are_not_those_of_one_whose_name_goes_on():
    model = tiny.fresh()
    assert "model.encoder.vision_normalise.mean" in model.state_dict()
    found = weights.named(model, ["model.encoder.vision"])
    assert found and all(name.startswith("model.encoder.vision.") for name in found)


def test_a_module_that_the_model_lacks_cannot_be_stored():
    with pytest.raises(ValueError, match=r"cannot store \['model.project'\]"):
        weights.named(tiny.fresh(), ["model.projector", "model.project"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.projector.fc9.weight": torch.zeros(2)}, r"have model.projector.fc9.weight of shape \(2,\), found no such tensor"),
        ({"grounding.seg_input": torch.zeros(2)}, r"have grounding.seg_input of shape \(2,\), found \(32,\)"),
    ],
)
def test_a_tensor_that_does_not_fit_the_model_is_refused_by_name(tmp_path, tensors, message):
    with pytest.raises(InputError, match=f"{tmp_path}.*{message}"):
        weights.load(tiny.fresh(), tensors, tmp_path)
