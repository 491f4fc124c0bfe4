"""Data under DVC with a plain S3 remote: what is pushed can be pulled and has nothing to do, and a change moves what it changed alone."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import s3
import yaml

from conftest import ROOT, Project
from unimed import hashes

pytestmark = pytest.mark.slow

CODE = ("src", "components", "pipelines")
CASES, SLICES = 30, 2
STAGES = ("ingest", "subset_alignment", "subset_grounding", "validate_alignment", "validate_grounding")
"""Stages that make data, for two tasks: one without masks and one with."""


def run(project: Project, *command: str, **environ: str) -> str:
    """What a command prints; it must succeed."""
    done = project.run(*command, **environ)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def copied(root: Path) -> Project:
    """The project with the stages that make data, as a git repository."""
    for name in CODE:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in (".dvc/config", ".dvcignore", ".gitignore", "exclusions.csv"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    data = {name: graph[name] for name in STAGES}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": data}, sort_keys=False))
    numbers = yaml.safe_load((ROOT / "params.yaml").read_text())
    used = {key.partition(".")[0] for entry in data.values() for key in entry["params"]}
    (root / "params.yaml").write_text(yaml.safe_dump({key: numbers[key] for key in numbers if key in used}))
    return Project(root)


def commit(project: Project) -> None:
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for command in (("git", "add", "-A"), ("git", *author, "commit", "-qm", "data")):
        run(project, *command)


@pytest.fixture(scope="module")
def store():
    """An S3 service with an empty store."""
    with s3.moto() as address, s3.empty(address) as found:
        yield found


@pytest.fixture(scope="module")
def project(tmp_path_factory, store) -> Project:
    """A clone whose data stages ran and whose data are pushed."""
    project = copied(tmp_path_factory.mktemp("clone"))
    run(project, "git", "init", "-q")
    run(project, "unimed", "data", "phantoms", "--out", "data/raw", "--cases", str(CASES), "--slices", str(SLICES))
    run(project, "dvc", "remote", "add", "--default", "store", store.url)
    run(project, "dvc", "add", "data/raw")
    run(project, "dvc", "repro", **store.environ)
    commit(project)
    run(project, "dvc", "push", **store.environ)
    return project


def outs(project: Project) -> dict[str, Path]:
    """The outputs of the stages, by path."""
    stages = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"].values()
    return {out["path"]: project.root / out["path"] for entry in stages for out in entry["outs"]}


def objects(store: s3.Service) -> dict[str, int]:
    """Size of each object, by hash."""
    pages = store.client.get_paginator("list_objects_v2").paginate(Bucket=s3.BUCKET, Prefix="team/store/files/md5/")
    found = [entry for page in pages for entry in page.get("Contents", [])]
    return {"".join(entry["Key"].split("/")[-2:]): entry["Size"] for entry in found}


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file of a folder that DVC tracks, and of its listing."""
    entries = hashes.listing(folder)
    return {entry["md5"]: entry["relpath"] for entry in entries} | {hashes.listing_hash(entries): ""}


def test_no_output_has_more_files_than_a_handful_a_shard(project):
    """60 slices and their masks lie in one shard and four tables."""
    shards = len(list((project.root / "data/shards").iterdir()))
    counted = {name: len(hashes.files(folder)) for name, folder in outs(project).items()}
    assert shards == 1 and counted["data/shards"] <= 2 * shards
    assert max(counted.values()) <= 6 and len(hashes.files(project.root / "data/raw")) > CASES * SLICES


def test_what_was_pushed_is_content_addressed_and_whole(project, store):
    expected = {digest for folder in outs(project).values() for digest in contents(folder)}
    assert expected <= objects(store).keys()


def test_a_fresh_clone_pulls_the_data_and_has_nothing_to_do(project, store, tmp_path):
    subprocess.run(["git", "clone", "-q", str(project.root), str(tmp_path / "fresh")], check=True)
    fresh = Project(tmp_path / "fresh")
    run(fresh, "dvc", "pull", **store.environ)
    assert all(hashes.dvc_hash(fresh.root / name) == hashes.dvc_hash(folder) for name, folder in outs(project).items())
    said = run(fresh, "dvc", "repro", **store.environ)
    assert "Running stage" not in said and "up to date" in said


def test_a_changed_annotation_moves_the_tables_that_hold_it_and_no_image(project, store):
    """One caption: the download's JSON, the conversations of ingest and of alignment, and what tells of those. Shards stay in the store."""
    before, listed = objects(store), {name: contents(folder) for name, folder in outs(project).items()}
    file = next((project.root / "data/raw/alignment").glob("*.json"))
    records = json.loads(file.read_text())
    records[0]["conversations"][1]["value"] += " Seen again."
    file.write_text(json.dumps(records))
    run(project, "dvc", "repro", "data/raw.dvc", **store.environ)
    said = run(project, "dvc", "repro", **store.environ)
    assert "Running stage 'validate_alignment'" in said and "Running stage 'validate_grounding'" not in said
    run(project, "dvc", "push", **store.environ)
    moved = objects(store).keys() - before.keys()
    now = {name: contents(folder) for name, folder in outs(project).items()}
    changed = {(name, now[name][digest]) for name in now for digest in now[name].keys() - listed[name].keys()}
    assert now["data/shards"] == listed["data/shards"]
    assert {(name, path) for name, path in changed if path.endswith(".parquet")} == {
        (f"data/{name}", "conversations.parquet") for name in ("tables", "subsets/alignment", "valid/alignment")
    }
    assert {name for name, _ in changed} == {"data/tables", "data/subsets/alignment", "data/valid/alignment"}
    shards = sum(file.stat().st_size for file in (project.root / "data/shards").iterdir())
    images = [digest for digest in moved if digest in contents(project.root / "data/shards")]
    tables = sum(objects(store)[digest] for digest in moved if digest in {key for name in now for key in now[name]})
    assert not images and 0 < tables < shards / 4
