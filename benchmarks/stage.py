"""A stage of dvc.yaml as its own command runs it, and what that took: when its parts began, and the peak of the GPU's memory.

python -m benchmarks.stage NAME FILE, in a folder with params.yaml; the numbers go to FILE as JSON. Without Great Expectations nothing is
validated, so stages read the subsets as they were drawn.
"""

import functools
import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines import stages
from unimed import step

ROOT = Path(__file__).parent.parent
DECLARED = {stage.name: stage for stage in stages.read((ROOT / "dvc.yaml").read_text())}
UNCHECKED = ("data/valid/", "data/subsets/")
"""Where validated data would lie, and where the same rows lie before."""


@dataclass
class Marks:
    """Moments of a stage, in seconds since 1970, and the most that its GPU held, in bytes."""

    called: float = 0.0
    """Its inputs are hashed and its `run` begins."""

    first_pass: float = 0.0
    """The model is loaded and reads its first batch; 0 where nothing trains."""

    placed: float = 0.0
    """Its outputs are complete and in place."""

    peak: int = 0


def watched(run: Callable[..., None], marks: Marks) -> Callable[..., None]:
    """The component's `run`, noting when it was called and when the model read its first batch."""

    @functools.wraps(run)
    def noted(**given: Any) -> None:
        marks.called = time.time()
        _note_first_pass(marks)
        run(**given)

    return noted


def _note_first_pass(marks: Marks) -> None:
    if (architecture := sys.modules.get("unimed.model.unimed")) is None:
        return
    from torch.nn.modules.module import register_module_forward_pre_hook

    def note(module: Any, args: tuple) -> None:
        if isinstance(module, architecture.UniMedForConditionalGeneration):
            marks.first_pass = time.time()
            handle.remove()

    handle = register_module_forward_pre_hook(note)


def main(name: str, file: Path) -> None:
    """Run the stage in the working folder; as its command does, it exits with the stage's own code when that fails."""
    stage, marks = DECLARED[name], Marks()
    component = importlib.import_module(f"components.{stage.component}")
    sys.argv = [str(component.__file__), *(word.replace(*UNCHECKED) for word in stage.command[stages.PROGRAM :])]
    step.main(watched(component.run, marks))
    marks.placed = time.time()
    if torch := sys.modules.get("torch"):
        marks.peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    file.write_text(json.dumps(asdict(marks)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
