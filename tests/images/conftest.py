"""One dockerd, one copy of the project and its images for all tests here."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
import yaml

from images import engine

COMMIT = {"NAME": "test", "EMAIL": "test@localhost", "DATE": "2026-01-01T00:00:00Z"}
FEW = {"batch_size": 2, "max_steps": 2, "warmup_steps": 0}
STAND_IN = FEW | {"learning_rate": 1e-3}
CAPTIONS = "align / caption loss (baseline: unaligned)"
SMALL = {
    "cluster": {"retries": 0},
    "foundation": {"cases": 4, "vision": STAND_IN, "masks": STAND_IN, "language": STAND_IN},
    **dict.fromkeys(("align", "vqa_expert", "grounding_expert", "moe_router"), FEW),
    "grpo": FEW | {"cold_start": STAND_IN, "group_size": 2, "max_completion_length": 4},
    "evaluate": {"max_items": 3, "max_new_tokens": 4, "bootstrap_samples": 20},
    "gate": {
        "floors": {"align / caption loss (baseline: unaligned)": 0.0},
        "ceilings": {},
        "gaps": {},
        "modality_floors": {},
        "least_items": 1,
        "least_patients": 2,
    },
}
"""The smallest numbers, and a gate that lets such models through: what is tested is the way they go, not the models."""


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    """A client of our own dockerd."""
    with engine.running() as running:
        yield running


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with small numbers and one commit, whose revision is the same for the same files."""
    folder = engine.copy_project(tmp_path_factory.mktemp("project"))
    params = yaml.safe_load((folder / "params.yaml").read_text())
    changed = {name: params.get(name, {}) | numbers for name, numbers in SMALL.items()}
    (folder / "params.yaml").write_text(yaml.safe_dump(params | changed))
    environ = os.environ | {f"GIT_{who}_{what}": text for who in ("AUTHOR", "COMMITTER") for what, text in COMMIT.items()}
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "All"]):
        subprocess.run(["git", *command], cwd=folder, env=environ, check=True)
    return folder


@pytest.fixture(scope="session")
def images(client: docker.DockerClient, project: Path) -> dict[str, str]:
    """The names of both images, built by `make images`."""
    engine.place_base(client)
    return engine.build(client, project)
