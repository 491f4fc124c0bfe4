"""`unimed trace` in the working folder: the whole tree of a release, what is not here said to be so, the first mismatch named."""

import json
import os
import re
import shutil
from pathlib import Path

import candidate
import pytest
import released

from unimed.data.tables import Tables
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.release import gate, trace
from unimed.release.tree import Node
from unimed.settings import Tracking

GOLDEN = Path(__file__).parent / "golden/trace.txt"
RELEASE = "reports/release"


@pytest.fixture
def project(released_project, tmp_path, monkeypatch):
    """A copy of the project to spoil; the working folder."""
    released.copied(released_project, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def traced(target: str = RELEASE, verify: bool = True) -> Node:
    return trace.trace(target, Tracking(uri="sqlite:///none.db"), Path(), verify)


def named(node: Node, *names: str) -> Node:
    """The node at the end of a path of names."""
    for name in names:
        [node] = [child for child in node.children if child.name == name]
    return node


def test_the_tree_is_the_golden_one(project):
    """After a change that is meant: UPDATE_GOLDEN=1 pytest tests/test_trace.py, and read the difference."""
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12}\b", "." * 12, traced().text()) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    assert max(map(len, text.splitlines())) <= 100


def test_an_untouched_release_matches_throughout(project):
    tree = traced()
    assert list(tree.faults()) == []
    assert {child.state for child in tree.children if child.name in candidate.MODELS} == {"verified"}
    assert named(tree, "data", "vqa", "subset").state == named(tree, "data", "raw").state == "verified"


def test_without_verify_nothing_is_said_to_be_verified(project):
    assert "verified" not in json.dumps(traced(verify=False).as_json())


def test_json_holds_hashes_in_full_and_the_params_of_the_lock(project):
    tree = traced().as_json()
    [aligned] = [child for child in tree["children"] if child["name"] == "aligned"]
    assert aligned["facts"]["manifest"] == artifacts.sha256(project / "models/aligned/manifest.json")
    assert aligned["children"][0]["children"][0]["facts"] == {"align.batch_size": "16", "align.max_steps": "600"}


TAMPERED = {
    "reports/release/DATA.md": r"^DATA.md: expected sha256 ",
    "models/router/model.safetensors": r"^router: model.safetensors: expected sha256 ",
    "models/reasoner/manifest.json": r"^reasoner: expected models/reasoner with manifest sha256 ",
    "data/valid/vqa/samples.parquet": r"^data/valid/vqa: expected data with the hash .*\.dir, found ",
    "data/subsets/grounding/masks.parquet": r"^data/subsets/grounding: expected a subset with the hash ",
    "data/shards/shard-000000.tar": r"^data/shards: expected data with the hash ",
    "data/raw/SAMed2Dv1/SAMed2D_v1.json": r"^data/raw: expected data with the hash ",
}


@pytest.mark.parametrize("file", TAMPERED)
def test_one_changed_byte_is_the_first_thing_that_is_named(project, file):
    released.flip(project / file)
    assert re.match(TAMPERED[file], next(traced().faults()))


def test_a_subset_is_held_to_the_verdict_where_there_is_no_lock(project):
    (project / "dvc.lock").unlink()
    assert named(traced(), "data", "vqa", "subset").state == "verified"
    released.flip(project / "data/subsets/vqa/samples.parquet")
    assert next(traced().faults()).startswith("data/subsets/vqa: expected a subset with the hash ")


def test_what_is_not_here_is_said_to_be_so_and_is_no_mismatch(project):
    for place in ("data", "models/vqa_expert", "dvc.lock"):
        shutil.rmtree(project / place) if (project / place).is_dir() else (project / place).unlink()
    tree = traced()
    assert list(tree.faults()) == []
    gone = (("vqa_expert",), ("aligned", "run"), ("aligned", "run", "params"), ("data", "vqa"), ("data", "vqa", "subset"))
    for path in (*gone, ("data", "shards"), ("data", "raw"), ("files", "signature.json")):
        assert named(tree, *path).state == "not here", path
    assert named(tree, "data", "vqa", "sources").facts["licences"] == "CC-BY-4.0 3, CC0-1.0 4"


def test_a_lock_that_is_about_other_data_says_nothing(project):
    text = (project / "dvc.lock").read_text()
    for task in ("alignment", "vqa", "grounding", "reasoning"):
        text = text.replace(gate.validated(project / "data/valid" / task).digest, "0" * 32 + ".dir")
    (project / "dvc.lock").write_text(text)
    assert named(traced(), "data", "shards").state == "not here"


def test_a_part_that_was_trained_on_other_data_is_named(project):
    tables = Tables.read(project / "data/valid/vqa")
    shutil.rmtree(project / "data/valid/vqa")
    tables.write(project / "data/valid/vqa")
    content = json.loads((project / RELEASE / "release.json").read_text())
    content["data"]["vqa"] = gate.hashes.dvc_hash(project / "data/valid/vqa")
    (project / RELEASE / "release.json").write_text(json.dumps(content))
    assert next(traced().faults()).startswith("aligned: expected it to be trained on vqa ")


def test_a_part_whose_parent_is_another_is_named(project):
    released.flip(project / "models/aligned/model.safetensors")
    candidate.resealed(project, "aligned")
    content = json.loads((project / RELEASE / "release.json").read_text())
    digest = artifacts.sha256(project / "models/aligned/manifest.json")
    content["parts"]["aligned"] = {"manifest_sha256": digest}
    (project / RELEASE / "release.json").write_text(json.dumps(content))
    assert f"vqa_expert: expected its parent aligned to have manifest sha256 {digest}" in next(traced().faults())


def test_a_model_folder_is_traced_to_its_parents_and_its_own_data(project):
    tree = traced("models/router")
    assert [child.name for child in tree.children] == ["foundation", "aligned", "vqa_expert", "grounding_expert", "router", "data"]
    assert list(tree.faults()) == []
    released.flip(project / "models/router/model.safetensors")
    assert "model.safetensors: expected sha256" in next(traced("models/router").faults())


@pytest.mark.parametrize("target", ["reports", "nowhere"])
def test_a_folder_that_is_neither_release_nor_model_is_an_error(project, target):
    with pytest.raises(InputError, match=rf"{target}: expected a folder with release.json or manifest.json"):
        traced(target)


def test_asking_makes_no_database(project):
    with pytest.raises(InputError, match=r"none.db: expected MLflow's database, found none"):
        traced("models:/unimed-medvlm@champion")
    assert not Path("none.db").exists()
