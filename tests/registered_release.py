"""A release of tiny models, registered: what tests of loading it start from.

PYTEST_DONT_REWRITE: test files import it and name it under `pytest_plugins`, for its fixtures.
"""

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import candidate
import pytest
from PIL import Image

from unimed.release import gate, manifest, papers, register
from unimed.settings import Tracking


@pytest.fixture(scope="session")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A candidate that has passed the gate, to be copied."""
    root = tmp_path_factory.mktemp("passed")
    candidate.make(root)
    assert gate.write(root / "gate", candidate.of(root), candidate.GATE)["passed"]
    return root


@pytest.fixture(scope="module")
def home(passed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a registered release, alias champion, in mlflow.db and mlartifacts."""
    from mlflow import MlflowClient

    root = copied(passed, tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register_at(root, address(root), write(root, "abc"))
    MlflowClient(address(root), address(root)).set_registered_model_alias("unimed-medvlm", "champion", "1")
    return root


def copied(passed: Path, root: Path) -> Path:
    """The candidate under another folder, with the gate's verdict."""
    shutil.copytree(passed / "gate", root / "gate")
    (root / "requirements.lock").write_text("numpy==2.4.0\n")
    return candidate.copied(passed, root)


def address(root: Path) -> str:
    """The registry of the project in a folder."""
    return f"sqlite:///{root}/mlflow.db"


def write(root: Path, revision: str) -> Path:
    """The release.json of the candidate under `root` as of a git revision; another revision is another release."""
    found, folder = candidate.of(root), root / f"release-{revision}"
    path = manifest.write(folder, root / "gate", found.models, revision)
    papers.write(folder, root / "gate", found.data, root / "requirements.lock")
    return path


def register_at(root: Path, uri: str, path: Path) -> dict[str, Any]:
    """Register a release; gives names and versions."""
    return register.register(path, candidate.of(root).models, path.parent.name.removeprefix("release-"), Tracking(uri=uri))


def scan() -> Image.Image:
    """An image to ask about."""
    return Image.linear_gradient("L").resize((48, 40)).convert("RGB")


def encoded() -> str:
    """The same image as a request holds it."""
    stream = io.BytesIO()
    scan().save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No project, no tracking and no store but what a test names, and a cache of its own."""
    for name in ("MLFLOW_TRACKING_URI", "UNIMED_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
