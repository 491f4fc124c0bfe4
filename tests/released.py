"""A release of tiny models, registered: what tests of loading it start from."""

import base64
import io
from pathlib import Path
from typing import Any

import candidate
import pytest
from PIL import Image

from unimed.release import gate, manifest, register
from unimed.settings import Tracking


def make(root: Path) -> Path:
    """A candidate under `root` that has passed the gate, and its release.json, not registered yet."""
    candidate.make(root)
    assert gate.write(root / "gate", candidate.of(root), candidate.GATE)["passed"]
    return write(root, "abc")


def write(root: Path, revision: str) -> Path:
    """The release.json of the candidate under `root` as of a git revision; another revision is another release."""
    return manifest.write(root / f"release-{revision}", root / "gate", candidate.of(root).models, revision)


def register_at(root: Path, uri: str, path: Path) -> dict[str, Any]:
    """Register a release; gives names and versions."""
    return register.register(path, candidate.of(root).models, path.parent.name, Tracking(uri=uri))


def scan() -> Image.Image:
    """An image to ask about."""
    return Image.linear_gradient("L").resize((48, 40)).convert("RGB")


def encoded() -> str:
    """The same image as a request holds it."""
    stream = io.BytesIO()
    scan().save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No project, no tracking and no store but what a test names, and a cache of its own."""
    for name in ("MLFLOW_TRACKING_URI", "UNIMED_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
