"""`unimed trace`, `verify` and `card` on a real MLflow server: runs and their params, tampered and deleted parts, and the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import released
from mlflow_server import serving

from unimed import tracking
from unimed.errors import InputError
from unimed.job import Job
from unimed.release import case, register, trace
from unimed.release.tree import Node
from unimed.settings import Tracking

pytestmark = pytest.mark.slow
CHALLENGER = "models:/unimed-medvlm@challenger"
IMAGE = f"registry.example/train@sha256:{'1' * 64}"


@pytest.fixture(scope="module")
def server(released_project, tmp_path_factory):
    """A server with the release, its aligned model registered by its stage; and the folder that it keeps artifacts in."""
    folder = tmp_path_factory.mktemp("server")
    job = Job("align", "0123456789abcdef", {"data/valid/alignment": "0" * 32 + ".dir"}, {"align.max_steps": 600})
    with serving(folder) as uri, pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("UNIMED_IMAGE", IMAGE)
        patch.chdir(released.copied(released_project, tmp_path_factory.mktemp("registered")))
        with tracking.follow(job, Tracking(uri=uri)):
            tracking.register("unimed-align", Path("models/aligned"))
        register.register(Path("reports/release/release.json"), released.of(Path.cwd()).models, "abc", Tracking(uri=uri))
        yield uri, folder / "artifacts"


@pytest.fixture
def project(released_project, tmp_path, monkeypatch, server):
    """A copy of the project as working folder."""
    monkeypatch.chdir(released.copied(released_project, tmp_path))
    return Tracking(uri=server[0])


def named(node: Node, *names: str) -> Node:
    for name in names:
        [node] = [child for child in node.children if child.name == name]
    return node


def test_a_release_is_traced_to_versions_runs_and_params_and_matches(project):
    tree = trace.trace(CHALLENGER, project, Path(), verify=True)
    assert list(tree.faults()) == [] and tree.name.startswith("unimed-medvlm version ")
    assert named(tree, "reasoner").facts["kept as"].startswith("unimed-reasoner version ")
    run = named(tree, "aligned", "run")
    assert (run.facts["stage"], run.facts["recipe"], run.facts["image"]) == ("align", "0123456789abcdef", IMAGE)
    assert named(run, "params").facts == {"align.max_steps": "600"}
    assert {named(tree, name).state for name in ("foundation", "aligned", "reasoner")} == {"verified"}


def test_the_registry_is_read_not_the_working_folder(project):
    released.flip(Path("models/router/model.safetensors"))
    assert list(trace.trace(CHALLENGER, project, Path(), verify=True).faults()) == []


def test_a_case_names_the_versions_that_saw_it(project):
    registry = named(case.trace("SetA/case_1", project, Path()), "registry")
    names = [child.name.partition(" version ")[0] for child in registry.children]
    parts = ["unimed-align", "unimed-vqa-expert", "unimed-grounding-expert", "unimed-router", "unimed-reasoner"]
    assert list(dict.fromkeys(names)) == [*parts, "unimed-medvlm"]
    assert named(registry, registry.children[0].name).facts == {"judged on it for": "alignment, grounding, reasoning, vqa"}


@pytest.mark.parametrize("address", ["models:/unimed-medvlm@nobody", "models:/unimed-medvlm/99", "models:/unimed-medvlm", "models:/x@"])
def test_an_address_of_nothing_is_one_sentence(project, address):
    with pytest.raises(InputError) as caught:
        trace.trace(address, project, Path())
    assert len(str(caught.value).splitlines()) == 1


def command(uri: str, *words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from unimed.cli import main; main()", *words]
    environ = os.environ | {"MLFLOW_TRACKING_URI": uri}
    return subprocess.run(program, env=environ, capture_output=True, text=True, check=False)


def test_commands_read_the_registry(project):
    found = command(project.uri, "verify", CHALLENGER)
    assert (found.returncode, found.stdout.splitlines()[-1]) == (0, "all of it matches"), found.stderr
    shown = command(project.uri, "card", CHALLENGER)
    assert shown.stdout == Path("reports/release/README.md").read_text()
    tree = json.loads(command(project.uri, "trace", CHALLENGER, "--json").stdout)
    assert tree["name"].startswith("unimed-medvlm version ")


def test_a_tampered_artifact_is_named_and_the_exit_code_is_1(project, server):
    """Last but one: it spoils what the server keeps."""
    for file in server[1].rglob("*/model/adapter_model.safetensors"):
        released.flip(file)
    failed = command(project.uri, "trace", CHALLENGER, "--verify")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("unimed: vqa_expert: adapter_model.safetensors: expected sha256 ")


def test_a_deleted_version_that_a_release_needs_is_named(project):
    from mlflow import MlflowClient

    client = MlflowClient(project.uri, project.uri)
    tags = client.get_model_version_by_alias("unimed-medvlm", "challenger").tags
    client.delete_model_version("unimed-align", tags["unimed-align"])
    tree = trace.trace(CHALLENGER, project, Path(), verify=True)
    assert named(tree, "aligned").state == "not here"
    assert f"aligned: expected unimed-align version {tags['unimed-align']} in the registry, found it gone" in tree.faults()
    assert not list(trace.trace(CHALLENGER, project, Path()).faults())
