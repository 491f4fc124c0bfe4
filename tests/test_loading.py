"""`unimed.load`: a release is on this machine complete, as it was registered, or there is one sentence about what is not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import registered_release
import torch
from PIL import ExifTags, Image
from registered_release import address

import unimed
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.release import fetch, whereabouts
from unimed.release.parts import PARENTS
from unimed.settings import Tracking

pytest_plugins = ["registered_release"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("apart")]

CHAMPION = "models:/unimed-medvlm@champion"


@pytest.fixture
def spoilt(home, tmp_path):
    """The project, its files to be spoiled: the registry knows where they lie, so that the right ones are put back afterwards."""
    names = ("mlartifacts", "models")
    for name in names:
        shutil.copytree(home / name, tmp_path / name)
    yield home
    for name in names:
        shutil.rmtree(home / name)
        shutil.move(tmp_path / name, home / name)


@pytest.fixture
def project(home, monkeypatch):
    """The working folder is the project, with its models and its registry."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address(home))
    return home


def stored(home: Path, model: str) -> Path:
    """Where the registry keeps the files of version 1 of a model."""
    from mlflow import MlflowClient

    return Path(MlflowClient(address(home), address(home)).get_model_version(model, "1").source.removeprefix("file://"))


def cached(tmp_path: Path) -> Path:
    return tmp_path / "cache/unimed"


def test_the_champion_answers_as_the_folder_it_was_registered_from_does(project, tmp_path):
    found = unimed.load(CHAMPION)
    said = found.answer(registered_release.scan(), "Is there a nodule?", ["box:2,3,9,9"])
    assert said == unimed.load(str(project / "models/reasoner")).answer(registered_release.scan(), "Is there a nodule?", ["box:2,3,9,9"])
    assert (found.version, found.manifest["git_revision"]) == ("1", "abc")
    assert said.router


def test_an_image_in_memory_is_seen_as_its_file_is(project, tmp_path):
    """Sixteen bits are scaled, not cut off, and what is to be shown turned is refused."""
    made, deep = unimed.load(str(project / "models/reasoner")), np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    seen = []
    made.made.model.register_forward_pre_hook(lambda module, args, inputs: seen.append(inputs.get("pixel_values")), with_kwargs=True)
    for image in (tmp_path / "deep.png", Image.fromarray(deep)):
        made.answer(image, "Is there a nodule?")
    first, *_, second = [pixels for pixels in seen if pixels is not None]
    assert torch.equal(first, second) and 0.3 < float(first[:, :3].mean()) < 0.7
    turned = Image.new("RGB", (4, 4))
    turned.getexif()[ExifTags.Base.Orientation] = 6
    with pytest.raises(InputError, match="^image: expected pixels stored upright, found EXIF orientation 6"):
        made.answer(turned, "Is there a nodule?")
    (tmp_path / "cut.png").write_bytes((tmp_path / "deep.png").read_bytes()[:120])
    with (
        Image.open(tmp_path / "cut.png") as cut,
        pytest.raises(InputError, match="^image: expected a whole PNG or JPEG, found a broken one"),
    ):
        made.answer(cut, "Is there a nodule?")


def test_the_cache_is_the_release_with_all_it_was_registered_with(project, tmp_path):
    found = fetch.fetch(CHAMPION, Tracking())
    digest = artifacts.sha256(project / "release-abc/release.json")
    assert found.folder == cached(tmp_path) / "releases" / digest
    here = {path.name: path.read_bytes() for path in (project / "release-abc").iterdir()}
    assert {path.name: path.read_bytes() for path in found.folder.iterdir() if path.is_file()} == here
    assert {path.name for path in found.folder.iterdir() if path.is_dir()} == set(PARENTS)
    for name in PARENTS:
        assert artifacts.verify(found.folder / name) == artifacts.verify(project / "models" / name)
    assert not [path for path in cached(tmp_path).rglob("*") if path.suffix in (".partial", ".lock", ".download")]


def test_by_number_it_is_the_same_and_another_number_is_one_sentence(project):
    assert fetch.fetch("models:/unimed-medvlm/1", Tracking()).version == "1"
    with pytest.raises(InputError, match=r"unimed-medvlm version 7: expected it in the registry, found none; choose another"):
        fetch.fetch("models:/unimed-medvlm/7", Tracking())
    with pytest.raises(InputError, match=r"models:/unimed-medvlm@previous: expected a version of that alias, found none \("):
        fetch.resolve("models:/unimed-medvlm@previous", Tracking())
    with pytest.raises(InputError, match=r"models:/unimed-medvlm: expected models:/NAME@ALIAS, models:/NAME/VERSION or a folder"):
        unimed.load("models:/unimed-medvlm")


def test_a_version_that_is_no_release_is_refused(project):
    with pytest.raises(InputError, match=r"unimed-router version 1: expected release.json as it was registered, found another or none"):
        unimed.load("models:/unimed-router/1")


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "manifest.json"])
def test_a_part_that_was_tampered_with_is_named_and_nothing_is_left_of_it(spoilt, project, tmp_path, file):
    (stored(spoilt, "unimed-vqa-expert") / file).write_bytes(b'{"files": {}, "parents": {}}')
    with pytest.raises(InputError, match=r"^unimed-vqa-expert version 1: .*expected"):
        unimed.load(CHAMPION)
    assert not list((cached(tmp_path) / "releases").glob("*[0-9a-f]"))


def test_a_file_that_nobody_registered_is_named(spoilt, project):
    (stored(spoilt, "unimed-router") / "more.py").write_text("pass")
    with pytest.raises(InputError, match=r"^unimed-router version 1: .*found nothing about more.py"):
        unimed.load(CHAMPION)


def test_a_file_added_to_the_release_is_named(spoilt, project):
    (stored(spoilt, "unimed-medvlm") / "more.py").write_text("pass")
    with pytest.raises(InputError, match=r"expected only what its manifest names, found more.py too"):
        unimed.load(CHAMPION)


def test_another_manifest_than_was_registered_is_refused(spoilt, project):
    path = stored(spoilt, "unimed-medvlm") / "release.json"
    path.write_text(path.read_text().replace('"abc"', '"def"'))
    with pytest.raises(InputError, match=r"unimed-medvlm version 1: expected release.json as it was registered"):
        unimed.load(CHAMPION)


def test_a_spoilt_cache_is_mended(project, tmp_path, caplog):
    folder = fetch.fetch(CHAMPION, Tracking()).folder
    for file in ("router/model.safetensors", "release.json"):
        (folder / file).write_bytes(b"")
    assert artifacts.verify(fetch.fetch(CHAMPION, Tracking()).folder / "router")
    assert "the cache is mended" in caplog.text


def test_no_code_of_the_release_is_run(project):
    before = set(sys.modules)
    assert unimed.load(CHAMPION).version == "1"
    assert not [name for name in set(sys.modules) - before if "pyfunc" in name]


def test_a_page_of_code_that_was_changed_is_refused_and_not_run(spoilt, project):
    (stored(spoilt, "unimed-medvlm") / "pyfunc_model.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(InputError, match=r"pyfunc_model.py: expected sha256"):
        unimed.load(CHAMPION)


def test_a_release_in_a_folder_finds_its_parts_in_the_project_or_beside_it(project, tmp_path, monkeypatch):
    manifest = json.loads((project / "release-abc/release.json").read_text())
    assert unimed.load(str(project / "release-abc")).manifest == manifest
    whole = shutil.copytree(project / "release-abc", tmp_path / "whole")
    for name in PARENTS:
        shutil.copytree(project / "models" / name, whole / name)
    monkeypatch.chdir(tmp_path)
    assert fetch.fetch(str(whole), Tracking()).folder == whole
    (whole / "aligned/model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"^aligned: .*model.safetensors: expected sha256"):
        unimed.load(str(whole))


def test_a_foundation_that_is_nowhere_says_what_to_do(project, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^foundation: expected its folder with manifest .*`dvc pull models/foundation`.*UNIMED_STORE"):
        unimed.load(CHAMPION)


def test_a_foundation_that_was_changed_is_passed_over(spoilt, project, caplog):
    (spoilt / "models/foundation/mask/model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"^foundation: expected its folder"):
        unimed.load(CHAMPION)
    assert "models/foundation is passed over" in caplog.text


def test_the_store_is_the_project_s_default_remote_unless_one_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert whereabouts.store_address() == ""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    remote = team\n['remote \"team\"']\n    url = s3://bucket/store/\n")
    assert whereabouts.store_address() == "s3://bucket/store"
    monkeypatch.setenv("UNIMED_STORE", "s3://other/place")
    assert whereabouts.store_address() == "s3://other/place"


def test_two_processes_that_load_at_once_both_have_it(project):
    program = (
        f"from unimed.release.fetch import fetch; from unimed.settings import Tracking; print(fetch({CHAMPION!r}, Tracking()).version)"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["1", "1"]


def test_the_library_imports_at_once():
    heavy = "import sys, unimed; sys.exit(any(name in sys.modules for name in ('torch', 'mlflow', 'transformers', 'boto3')))"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0
