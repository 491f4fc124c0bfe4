"""The compiled pipeline in containers: KFP's local runner walks it, each task is a pod without network on a real engine."""

import json
from pathlib import Path

import pytest
from kfp import compiler, components, dsl

from conftest import Project
from images import engine, strict_runner
from pipelines import stages
from pipelines.plan import CONTROL
from unimed.data import phantom_files

pytestmark = [pytest.mark.images, pytest.mark.timeout(3600)]


def compiled(project: Path, raw: Path, file: Path) -> Path:
    """The project's pipeline for the raw data in a folder."""
    link = project / "data/raw"
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(raw, target_is_directory=True)
    done = Project(project).run("unimed", "compile", "--raw", str(raw), "--out", str(file))
    assert done.returncode == 0, done.stderr
    return file


def run(file: Path) -> None:
    """Run a compiled pipeline; raises when it fails."""
    components.load_component_from_file(str(file))()


def ran(commands: list[list[str]]) -> list[str]:
    """The stages whose pods have run, in order; the last report under its own name."""
    orders = [json.loads(words[words.index("--order") + 1]) if "--order" in words else {"stage": "last_report"} for words in commands]
    return [order["stage"] for order in orders]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that any user can write to, with raw data of a few made-up patients in it."""
    folder = tmp_path / "root"
    phantom_files.write(folder / "raw", cases=24, slices=2, seed=0)
    folder.chmod(0o777)
    return folder


def test_a_task_that_fails_fails_the_run_every_time(client, tmp_path: Path, monkeypatch):
    """As shipped, KFP's runner takes about half of these for successes."""
    engine.place_base(client)

    @dsl.container_component
    def failing() -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image=engine.BASE, command=["sh", "-c", "sleep 0.2; exit 3"])

    @dsl.pipeline(name="failing")
    def pipeline() -> None:
        failing()

    compiler.Compiler().compile(pipeline, str(tmp_path / "failing.yaml"))
    strict_runner.install(monkeypatch, str(tmp_path))
    for _ in range(10):
        with pytest.raises(RuntimeError, match="failing"):
            run(tmp_path / "failing.yaml")


def test_every_stage_runs_as_a_pod_and_the_run_ends_with_its_report(client, images, project, root, tmp_path, monkeypatch):
    pipeline = compiled(project, root / "raw", tmp_path / "pipeline.yaml")
    commands = strict_runner.install(monkeypatch, str(root))
    run(pipeline)
    every = [*stages.read((project / "dvc.yaml").read_text()), *CONTROL]
    assert sorted(ran(commands)) == sorted([*(stage.name for stage in every), "last_report"])
    assert {file.stat().st_uid for file in root.glob("uni-medvlm-*/*/*")} == {65532}
    [page] = root.glob("uni-medvlm-*/*/page")
    assert "SUCCEEDED" in page.read_text()
    assert not client.containers.list(all=True)


def test_data_that_the_pipeline_was_not_compiled_for_fail_the_run_at_the_first_stage(images, project, root, tmp_path, monkeypatch):
    pipeline = compiled(project, root / "raw", tmp_path / "pipeline.yaml")
    (root / "raw/provenance.json").write_text("{}")
    commands = strict_runner.install(monkeypatch, str(root))
    with pytest.raises(RuntimeError, match="ingest"):
        run(pipeline)
    assert {"ingest", "last_report"} <= set(ran(commands)) <= {"ingest", "foundation", "last_report"}
    [page] = root.glob("uni-medvlm-*/*/page")
    assert "FAILED" in page.read_text()
