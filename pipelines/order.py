"""What the compiler tells a pod: which stage it runs, under which key, where the store is, how many processes or machines share it."""

from pathlib import Path
from typing import Any

from pydantic import Field

from pipelines import stages
from pipelines.stages import CODE, Stage
from unimed.config import Section
from unimed.errors import InputError
from unimed.hashes import FOLDER, code_hash


class TrainJob(Section):
    """The machines of a stage that trains on several.

    Quantities, tolerations and selector as Kubernetes writes them. `gpu` is the resource that GPUs are counted under. `deadline_s` ends a
    training that no launcher waits for any more. `secrets` maps a Secret to the keys that become environment variables where they exist: a
    TrainJob cannot name a whole Secret.
    """

    image: str
    nodes: int = Field(gt=1)
    gpus: int
    memory: str
    shared_memory: str
    gpu: str
    runtime: str
    deadline_s: int
    tolerations: tuple[dict[str, str], ...]
    node_selector: dict[str, str]
    secrets: dict[str, tuple[str, ...]]

    @property
    def processes(self) -> int:
        """Of each machine."""
        return max(1, self.gpus)


class Order(Section):
    """The part of a pod's command that is known when the pipeline is compiled."""

    stage: str
    revision: str = ""
    """Git revision of the project."""

    image: str = ""
    """Its container image, by digest."""

    recipe: str = ""
    """Its recipe key; gate, release and report have none."""

    sources: dict[str, str] = Field(default_factory=dict)
    """A word for each input path: the recipe key of the stage that makes it, the hash of raw data."""

    store: str = ""
    """The store's address; empty when there is none, and every artifact travels as it is."""

    most_bytes: int = 0
    """An artifact larger than this travels by reference."""

    processes: int = 1
    train_job: TrainJob | None = None

    def check(self, stage: Stage, params: dict[str, Any], digests: dict[str, str], root: Path) -> None:
        """Raise `InputError` unless code, params and raw data in this pod are those the pipeline was compiled for.

        Without this the run would be cached and registered under a key that means something else.
        """
        if not self.recipe:
            return
        for path, word in self.sources.items():
            if word.endswith(FOLDER) and digests[path] != word:
                raise InputError(
                    f"{path}: expected the data {word} that this pipeline was compiled for, found {digests[path]}; compile anew"
                )
        code = {path: code_hash(root / path) for path in stage.code if path.startswith(CODE)}
        if (found := stages.recipe(stage, params, {**self.sources, **code})) != self.recipe:
            raise InputError(
                f"stage {stage.name}: expected code and params of recipe {self.recipe}, found {found}; "
                "compile the pipeline at the revision the image was built from, or build the image anew"
            )
