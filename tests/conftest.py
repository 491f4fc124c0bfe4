"""What all tests share: the environment programs run in, and a small project that DVC can run."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from unimed import environment

ROOT = Path(__file__).parent.parent
NOWHERE = "http://127.0.0.1:9"
"""An address where nothing listens: tracking is down."""

SHAPED = [file for folder in ("model", "train", "rl", "eval") for file in sorted((ROOT / "src/unimed" / folder).glob("*.py"))]
"""Modules whose tensor shapes are checked in every test."""

environment.settle()
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

# A file with one of transformers' @strict configurations stays out: they replace their own __init__ and the hook would check the wrong one.
install_import_hook([f"unimed.{file.parent.name}.{file.stem}" for file in SHAPED if "@strict" not in file.read_text()], "beartype.beartype")

COMPONENT = '''
"""A stage for tests."""

import logging, os, random, signal
from pathlib import Path

from unimed import step, tracking
from unimed.config import Section
from unimed.errors import InputError
from unimed.step import Input, Output
from pydantic import Field


class Numbers(Section):
    rate: float = Field(gt=0)
    steps: int = Field(gt=0)


def run(raw: Input, made: Output, task: str, seed: int, {name}: Numbers) -> None:
    made.mkdir()
    (made / "weights.bin").write_text(f"{{task}} {{random.random()}} {{{name}.rate}}")
    (made / "report.html").write_text("<p>report</p>")
    for number in range({name}.steps):
        tracking.log({{"loss": 1 / (number + 1)}}, number)
    match os.environ.get("MISHAP"):
        case "defect":
            raise KeyError("a defect")
        case "input":
            raise InputError("weights.bin: expected one thing, found another")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    step.main(run, registers="{model}")
'''

DVC_YAML = """
stages:
  first:
    desc: The first.
    cmd: python -m components.first --task one --raw data/raw --made models/first
    deps: [data/raw, components/first.py]
    params: [seed, first]
    outs: [models/first]
    meta: {image: ops, memory: 1Gi}
  second:
    desc: The second.
    cmd: python -m components.second --task two --raw models/first --made models/second
    deps: [models/first, components/second.py]
    params: [seed, second]
    outs: [models/second]
    meta: {image: ops, memory: 1Gi}
"""

PARAMS = "# numbers\nseed: 3  # the seed\nfirst: {rate: 0.5, steps: 3}\nsecond: {rate: 0.5, steps: 3}\n"


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Return as soon as something holds, however busy the machine is; it must within so many seconds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"it did not come to hold in {seconds} s"
        time.sleep(0.02)


@dataclass(frozen=True)
class Project:
    """A folder with two stages, and commands that run in it as a user's would."""

    root: Path

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command; `python`, `dvc` and `unimed` are this environment's, the library is the folder's own or else the project's."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        known = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
        home = self.root if (self.root / "src").is_dir() else ROOT
        environ = known | {"PATH": path, "PYTHONPATH": f"{home / 'src'}{os.pathsep}{home}"} | environ
        return subprocess.run(command, cwd=self.root, env=environ, capture_output=True, text=True, check=False)

    def first(self, *more: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the first stage by hand, with tracking down so that it starts fast."""
        flags = ("--task", "one", "--raw", "data/raw", "--made", "models/first")
        return self.run("python", "-m", "components.first", *flags, *more, MLFLOW_TRACKING_URI=NOWHERE, **environ)

    def set(self, old: str, new: str) -> None:
        """Replace a text in params.yaml."""
        file = self.root / "params.yaml"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))


def make_project(root: Path) -> Project:
    """Write the two-stage project into `root`, without git."""
    for folder in ("components", "data/raw", ".dvc"):
        (root / folder).mkdir(parents=True)
    (root / "data/raw/scan.txt").write_text("pixels")
    (root / "components/__init__.py").write_text((ROOT / "components/__init__.py").read_text())
    for name in ("first", "second"):
        (root / f"components/{name}.py").write_text(COMPONENT.format(name=name, model=f"toy-{name}"))
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text(PARAMS)
    for name in (".dvc/config", ".dvcignore"):
        (root / name).write_text((ROOT / name).read_text())
    return Project(root)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh two-stage project."""
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def released_project(tmp_path_factory) -> Path:
    """A project whose candidate was released; tests spoil copies of it."""
    import released

    root = tmp_path_factory.mktemp("released")
    released.make(root)
    return root
