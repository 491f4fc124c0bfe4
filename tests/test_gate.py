"""The gate: a sound candidate passes, each thing that can be wrong is named, and only input that is none is an error."""

import json
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import candidate
import numpy as np
import pytest
import yaml
from candidate import CLOSED, DICE, GATE, ROWS, SEG

from conftest import NOWHERE, ROOT
from unimed.data.tables import Tables
from unimed.errors import InputError
from unimed.eval.ladder import Row
from unimed.model import artifacts
from unimed.release import gate, scores
from unimed.release.comparison import Champion
from unimed.settings import Gate


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sound candidate."""
    root = tmp_path_factory.mktemp("candidate")
    candidate.make(root)
    return root


@pytest.fixture
def spoilt(made, tmp_path):
    """A copy of it to spoil."""
    return candidate.copied(made, tmp_path)


def judged(root: Path, bounds: Gate = GATE) -> dict:
    return gate.write(root / "gate", candidate.of(root), bounds)


def failed(verdict: dict) -> dict[str, str]:
    return {f"{check['kind']}: {check['name']}": check["found"] for check in verdict["checks"] if not check["passed"]}


def test_an_untouched_candidate_passes_and_is_named_by_its_hashes(made, tmp_path):
    verdict = gate.write(tmp_path / "gate", candidate.of(made), GATE)
    assert (verdict["passed"], verdict["reasons"]) == (True, [])
    assert {check["kind"] for check in verdict["checks"]} == {"quality", "comparison", "data", "provenance", "safety"}
    assert verdict["models"]["router"] == artifacts.sha256(made / "models/router/manifest.json")
    assert verdict["licences"]["vqa"] == {"CC-BY-4.0": 3, "CC0-1.0": 4}
    assert json.loads((tmp_path / "gate/verdict.json").read_text()) == verdict


def test_the_same_candidate_gives_the_same_bytes(made, tmp_path):
    for name in ("one", "two"):
        gate.write(tmp_path / name, candidate.of(made), GATE)
    for file in ("verdict.json", "report.html", "scores.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_row_that_is_missing_fails_and_says_so(spoilt):
    candidate.evaluated(spoilt, *ROWS[:1])
    verdict = judged(spoilt)
    assert failed(verdict) == {f"quality: {DICE}": "no such row in the ladder", f"quality: {SEG}": "no such row in the ladder"}
    assert verdict["reasons"][0] == f"quality: {DICE}: expected a low end of at least 0.7, found no such row in the ladder"


def flip(file: Path) -> None:
    *head, last = file.read_bytes()
    file.write_bytes(bytes([*head, last ^ 1]))


def test_a_tampered_file_is_named(spoilt):
    flip(spoilt / "models/router/model.safetensors")
    found = failed(judged(spoilt))
    assert found.keys() == {"provenance: files of router"}
    assert "router/model.safetensors: expected sha256 " in found["provenance: files of router"]


def test_a_foreign_parent_is_named_by_all_its_children(spoilt):
    """Another aligned model, sound in itself, in the place of the one that the others were made from."""
    flip(spoilt / "models/aligned/model.safetensors")
    candidate.resealed(spoilt, "aligned")
    candidate.evaluated(spoilt)
    children = ("vqa_expert", "grounding_expert", "router", "reasoner")
    assert failed(judged(spoilt)) == {f"provenance: parents of {name}": "another or no aligned" for name in children}


def test_a_model_that_names_neither_parents_nor_data_fails(spoilt):
    artifacts.seal(spoilt / "models/reasoner", {})
    candidate.evaluated(spoilt)
    parents, data = "provenance: parents of reasoner", "provenance: data that reasoner was trained on"
    assert failed(judged(spoilt)) == {parents: "another or no foundation, aligned, vqa and 2 more", data: "another or no record of them"}


def test_an_evaluation_of_other_models_or_data_fails(spoilt):
    file = spoilt / "report/scored.json"
    scored = json.loads(file.read_text())
    scored["models"]["reasoner"] = scored["data"]["vqa"] = "0" * 64
    file.write_text(json.dumps(scored))
    others = {"models that were evaluated": "another or no reasoner", "data that they were evaluated on": "another or no vqa"}
    assert failed(judged(spoilt)) == {f"provenance: {name}": found for name, found in others.items()}


def test_a_model_that_was_trained_on_other_data_fails(spoilt):
    folder = spoilt / "models/reasoner"
    parents = {name: folder.parent / Path(record["path"]).name for name, record in artifacts.verify(folder)["parents"].items()}
    artifacts.seal(folder, parents, data={"reasoning": "0" * 32 + ".dir"})
    candidate.evaluated(spoilt)
    assert failed(judged(spoilt)) == {"provenance: data that reasoner was trained on": "another or no reasoning"}


PICKLED = pickle.dumps({"step": 1})
DANGERS = {"optimizer.pt": (PICKLED, "its kind"), "extra.safetensors": (PICKLED, "no safetensors")}
DANGERS |= {"notes.json": (PICKLED, "no json"), "away.txt": (None, "a link")}


@pytest.mark.parametrize("name", DANGERS)
def test_a_file_that_could_run_code_is_named_even_if_it_was_sealed_in(spoilt, name):
    content, fault = DANGERS[name]
    file = spoilt / "models/reasoner" / name
    file.write_bytes(content) if content else file.symlink_to(file.with_name("adapter_config.json"))
    candidate.resealed(spoilt, "reasoner")
    candidate.evaluated(spoilt)
    assert failed(judged(spoilt)) == {"safety: files of reasoner": f"{name} ({fault})"}


def test_a_licence_that_is_not_allowed_is_named(made, tmp_path):
    verdict = gate.write(tmp_path / "gate", candidate.of(made), GATE.model_copy(update={"licences": ("CC0-1.0",)}))
    assert failed(verdict) == {f"data: licences of {task}": "CC-BY-4.0" for task in ("alignment", "vqa", "grounding", "reasoning")}


def test_too_few_patients_fail(made, tmp_path):
    verdict = gate.write(tmp_path / "gate", candidate.of(made), GATE.model_copy(update={"least_patients": 4}))
    assert set(failed(verdict).values()) == {"3"}


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


FOUND = "7 samples, 24 masks, 26 conversations, where the verdict has 9 samples, 24 masks, 26 conversations"


@pytest.mark.parametrize(
    ("values", "check", "found"),
    [
        ({"passed": False}, "contract of vqa", "it did not pass"),
        ({"expectations": [{"name": "image_bytes", "severity": "stop", "failed": 1}]}, "contract of vqa", "image_bytes broken"),
        ({"kept": {"samples": 9, "masks": 24, "conversations": 26}}, "rows of vqa", FOUND),
    ],
)
def test_a_failed_validation_is_named(spoilt, values, check, found):
    edit(spoilt / "valid/vqa/verdict.json", **values)
    candidate.trained(spoilt)
    assert failed(judged(spoilt)) == {f"data: {check}": found}


def test_a_patient_that_is_held_out_of_one_task_and_trained_on_in_another_is_named(spoilt):
    folder = spoilt / "valid/vqa"
    whole = Tables.read(folder)
    samples = whole.samples
    moved = (samples["dataset"] == "SetA") & (samples["case"] == "case_1")
    replace(whole, samples=samples.assign(split=np.where(moved, "train", samples["split"]))).write(folder)
    edit(folder / "manifest.json", counts=Tables.read(folder).counts())
    candidate.trained(spoilt)
    assert failed(judged(spoilt)) == {"data: held-out patients that some task trains on": "SetA/case_1"}


KEPT = ("report/ladder.json", "report/scored.json", "report/worst.json")
NEEDED = (*KEPT, "report/predictions.parquet", "report/worst/01.png", "models/router/manifest.json", "valid/vqa/verdict.json")


@pytest.mark.parametrize("file", NEEDED)
def test_what_is_no_model_data_or_evaluation_is_an_error(spoilt, file):
    (spoilt / file).unlink()
    with pytest.raises(InputError, match=rf"{Path(file).parent}.*expected .* found"):
        judged(spoilt)


@pytest.mark.parametrize("file", [*KEPT, "valid/vqa/verdict.json", "valid/vqa/manifest.json"])
def test_other_json_is_an_error(spoilt, file):
    (spoilt / file).write_text('["something else"]')
    with pytest.raises(InputError, match=rf"{file}: expected"):
        judged(spoilt)


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing_from_the_ladder(spoilt):
    name = "<script>alert(1)</script>"
    candidate.evaluated(spoilt, *ROWS, Row("grpo", name, 0.5, 0.4, 0.6, 300))
    judged(spoilt, GATE.model_copy(update={"floors": {f"grpo / {name}": 0.9}}))
    page = (spoilt / "gate/report.html").read_text()
    assert "For research use only." in page and "Rejected: 1 of" in page
    assert "grpo / &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert len(page) < 3_000_000 and not re.search(r"""<script|<link|(?:src|href)="(?!data:image/png;)|https?://|@import|url\(""", page)


def test_a_model_that_is_worse_than_the_champion_is_rejected_and_the_verdict_names_both(made, tmp_path):
    before = scores.table(made / "report")
    champion = Champion("3", "ab" * 32, {}, before.assign(score=np.where(before["row"] == DICE, 0.9, before["score"])))
    verdict = gate.write(tmp_path / "gate", candidate.of(made), GATE, champion)
    assert failed(verdict) == {f"comparison: {DICE}": "-0.100 (-0.100 to -0.100), n 240"}
    assert verdict["champion"] == {"version": "3", "manifest_sha256": "ab" * 32}
    assert scores.read(tmp_path / "gate/scores.parquet").equals(before.sort_values(["row", "item"]).reset_index(drop=True))


def test_the_page_shows_the_worst_cases_as_pictures_with_what_was_asked_and_answered(made, tmp_path):
    gate.write(tmp_path / "gate", candidate.of(made), GATE)
    page = (tmp_path / "gate/report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 10
    assert page.count("Please segment the liver.") == 5 and "&lt;SEG&gt;" in page


@pytest.mark.slow
def test_a_rejection_is_a_result_of_the_program(spoilt):
    bounds = GATE.model_dump(mode="json") | {"floors": {CLOSED: 0.86}}
    (spoilt / "params.yaml").write_text(yaml.safe_dump({"gate": bounds, "tracking": {}}))
    data = [word for task, folder in candidate.of(spoilt).data.items() for word in (f"--{task}", str(folder))]
    command = [sys.executable, "-m", "components.gate", *data, *candidate.flags(spoilt), "--report", "report", "--verdict", "reports/gate"]
    environ = {"PATH": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "MLFLOW_TRACKING_URI": "sqlite:///absent/mlflow.db"}
    done = subprocess.run(command, cwd=spoilt, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"quality: {CLOSED}: expected a low end of at least 0.86, found 0.900 (0.850 to 0.950)" in done.stderr
    assert json.loads((spoilt / "reports/gate/verdict.json").read_text())["passed"] is False
    dead = subprocess.run(command, cwd=spoilt, env=environ | {"MLFLOW_TRACKING_URI": NOWHERE}, capture_output=True, text=True, check=False)
    assert dead.returncode == 78 and "expected it to give the scores of the champion" in dead.stderr.splitlines()[-1]
