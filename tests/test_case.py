"""`unimed trace --case`: which tables, models and releases saw a patient, and what was done with it."""

import json
from pathlib import Path

import pytest
import released

from conftest import NOWHERE
from unimed.data import subset
from unimed.data.tables import Tables
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.release import case
from unimed.release.tree import Node
from unimed.settings import Tracking


@pytest.fixture
def project(released_project, tmp_path, monkeypatch):
    """A copy of the project; the working folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    released.copied(released_project, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def traced(name: str) -> Node:
    return case.trace(name, Tracking(uri=NOWHERE), Path())


def facts(node: Node, section: str) -> dict[str, dict[str, str]]:
    [found] = [child for child in node.children if child.name == section]
    return {child.name: dict(child.facts) for child in found.children}


def split(project: Path, dataset: str, name: str) -> tuple[str, int]:
    """The split of a case and its number of images, looked up by hand."""
    rows = Tables.read(project / "data/valid/vqa").samples
    rows = rows[(rows["dataset"] == dataset) & (rows["case"] == name)]
    [only] = set(rows["split"])
    return only, len(rows)


@pytest.mark.parametrize(("dataset", "name"), [("SetA", "case_1"), ("SetA", "case_2"), ("SetB", "case_1"), ("SetB", "case_3")])
def test_every_table_with_the_case_is_named_with_its_split(project, dataset, name):
    where, images = split(project, dataset, name)
    found = facts(traced(f"{dataset}/{name}"), "data")
    places = ["data/tables", *(f"data/{kind}/{task}" for kind in ("subsets", "valid") for task in subset.TASKS)]
    assert found == {place: {where: str(images)} for place in places}


def test_models_say_what_was_done_with_a_case_and_what_they_start_from(project):
    """aligned saw captions only, the experts all tasks."""
    manifest = json.loads((project / "models/aligned/manifest.json").read_text())
    data = {"alignment": manifest["data"]["alignment"]}
    artifacts.seal(project / "models/aligned", {"foundation": project / "models/foundation"}, data=data)
    everything = "alignment, grounding, reasoning, vqa"
    cases = {case_: split(project, *case_.split("/"))[0] for case_ in ("SetA/case_1", "SetA/case_2", "SetA/case_3", "SetB/case_1")}
    trained, held_out = (next(name for name, where in cases.items() if where == kind) for kind in ("train", "test"))
    seen = facts(traced(trained), "models here")
    assert seen["models/aligned"] == {"trained on it for": "alignment"}
    assert seen["models/vqa_expert"] == {"trained on it for": everything, "starts from aligned, trained on it for": "alignment"}
    assert facts(traced(held_out), "models here")["models/vqa_expert"] == {"judged on it for": everything}


def test_a_model_that_learned_nothing_of_a_case_is_not_named(project):
    artifacts.seal(project / "models/aligned", {}, data={"alignment": "0" * 32 + ".dir"})
    assert "models/aligned" not in facts(traced("SetA/case_1"), "models here")


def test_tables_and_a_registry_that_are_not_here_are_said_to_be_so(project):
    (project / "data/valid/vqa/samples.parquet").unlink()
    tree = traced("SetA/case_1")
    [data] = [child for child in tree.children if child.name == "data"]
    assert [child.name for child in data.children if child.state == "not here"] == ["data/valid/vqa"]
    [registry] = [child for child in tree.children if child.name == "registry"]
    assert (registry.state, "127.0.0.1:9 does not answer" in registry.facts["because"]) == ("not here", True)


@pytest.mark.parametrize("name", ["SetA", "SetA/", "/case_1", ""])
def test_another_form_is_an_error(project, name):
    with pytest.raises(InputError, match="expected DATASET/CASE"):
        traced(name)


@pytest.mark.parametrize("name", ["SetA/case_9", "SetC/case_1", "SetA/case_"])
def test_a_case_of_no_table_is_an_error(project, name):
    with pytest.raises(InputError, match=r"expected a case of the tables in data, found none"):
        traced(name)
