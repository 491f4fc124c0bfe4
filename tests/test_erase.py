"""`unimed data erase`: all that was made of a case is listed, by its tables and dvc.yaml, and the case excluded, or nothing is written."""

import shutil
from datetime import date
from pathlib import Path

import pytest
import released
import yaml

from conftest import NOWHERE, ROOT
from unimed import hashes
from unimed.data import exclusions, subset
from unimed.data.tables import Tables, matching
from unimed.errors import InputError
from unimed.release import erase
from unimed.settings import Tracking

DAY = date(2027, 1, 31)
CASE = "SetA/case_1"
MADE = {out for entry in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values() for out in entry["outs"]}


@pytest.fixture
def project(released_project, tmp_path, monkeypatch):
    """A copy of the project with its graph; the working folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    released.copied(released_project, tmp_path)
    for name in ("dvc.yaml", "exclusions.csv"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def erased(*names: str, reason: str = "consent withdrawn") -> str:
    return erase.erase(names, reason, Tracking(uri=NOWHERE), Path(), DAY)


def artifacts(name: str = CASE) -> dict[str, dict[str, str]]:
    tree = erase.derived(name, Tracking(uri=NOWHERE), Path())
    [found] = [child for child in tree.children if child.name == "artifacts"]
    return {child.name: dict(child.facts) | ({"state": child.state} if child.state else {}) for child in found.children}


def without(folder: Path, name: str) -> None:
    """Take a case out of the tables in a folder."""
    whole = Tables.read(folder)
    kept = whole.samples[whole.samples["dataset"] + "/" + whole.samples["case"] != name]
    known = set(kept["sample_id"])
    Tables(kept, matching(whole.masks, "sample_id", known), matching(whole.conversations, "sample_id", known)).write(folder)


def test_all_but_the_foundation_is_made_of_a_case_that_every_table_holds(project):
    assert set(artifacts()) == MADE - {"models/foundation"}


def test_each_artifact_says_what_made_it_with_its_hash_and_whether_it_is_here(project):
    found = artifacts()
    assert found["data/tables"] == {"made by": "ingest", "hash": hashes.dvc_hash(project / "data/tables")}
    assert found["models/aligned"] == {"made by": "align", "hash": hashes.dvc_hash(project / "models/aligned")}
    shutil.rmtree(project / "models/router")
    assert artifacts()["models/router"] == {"made by": "moe_router", "state": "not here"}


def test_a_task_that_never_saw_the_case_is_not_touched(project):
    """Grounding alone has it: what stages 3 to 5 make is made of it; captions, questions and what learns of those alone are not."""
    for task in ("alignment", "vqa", "reasoning"):
        for kind in ("subsets", "valid"):
            without(project / "data" / kind / task, CASE)
    data = {"data/shards", "data/tables", "data/subsets/grounding", "data/valid/grounding"}
    assert set(artifacts()) == data | {"models/grounding_expert", "models/router", "models/reasoner", "reports/evaluation"}


def test_tables_that_are_not_here_count_for_what_they_came_from_and_went_into(project):
    for name in ("tables", "shards", "subsets", "valid/alignment", "valid/reasoning"):
        shutil.rmtree(project / "data" / name)
    without(project / "data/valid/grounding", CASE)
    found = artifacts()
    assert {"data/tables", "data/shards", "data/subsets/vqa", "data/subsets/alignment", "data/valid/alignment", "models/aligned"} <= set(
        found
    )
    assert "data/valid/grounding" not in found and found["data/tables"]["state"] == "not here"


def test_cases_are_excluded_with_reason_and_day_and_the_next_steps_are_said(project):
    said = erased(CASE, "SetB/case_3")
    assert exclusions.read(project / "exclusions.csv") == {("SetA", "case_1"): "consent withdrawn", ("SetB", "case_3"): "consent withdrawn"}
    assert (project / "exclusions.csv").read_text().endswith("SetB,case_3,consent withdrawn,2027-01-31\n")
    for part in (
        "case SetA/case_1",
        "case SetB/case_3",
        "SetA/case_1 is excluded from the next run",
        "dvc repro",
        "dvc gc --workspace --cloud",
    ):
        assert part in said
    assert all(f"data/subsets/{task}: made by subset_{task}" in said for task in subset.TASKS)


def test_a_case_that_was_excluded_before_is_said_and_not_written_twice(project):
    erased(CASE)
    before = (project / "exclusions.csv").read_bytes()
    assert f"{CASE} was excluded before" in erased(CASE, reason="another")
    assert (project / "exclusions.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((CASE, "SetA/case_9"), "^SetA/case_9: expected a case of the tables in data, found none"),
        ((CASE, "case_1"), "^case_1: expected DATASET/CASE"),
    ],
)
def test_a_case_that_nobody_knows_is_one_sentence_and_nothing_is_written_for_any(project, names, message):
    before = (project / "exclusions.csv").read_bytes()
    with pytest.raises(InputError, match=message):
        erased(*names)
    assert (project / "exclusions.csv").read_bytes() == before


def test_a_folder_that_is_no_project_is_one_sentence(project):
    (project / "dvc.yaml").unlink()
    with pytest.raises(InputError, match=r"dvc.yaml: expected the stages of a project, found none"):
        erased(CASE)
