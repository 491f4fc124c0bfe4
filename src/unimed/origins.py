"""Where the frozen parts come from, as the section `foundation` of params.yaml: a stand-in made here, or checkpoints of one's own."""

from pathlib import Path
from typing import Annotated

from pydantic import Discriminator, Field, Tag, field_validator

from unimed.sections import Failures, Optimisation, Section


class StandIn(Section):
    """The stand-in for pre-trained towers: built small and shown phantoms that no later stage sees."""

    cases: int = Field(gt=0)
    """Made-up patients shown to the towers, four slices each; their seed differs from every other phantom's."""

    vocabulary: int = Field(gt=256)
    """Entries of the byte-level tokenizer."""

    vision: Optimisation
    masks: Optimisation
    language: Optimisation
    questions_per_sequence: int = Field(gt=0)

    @field_validator("vision", "masks", "language")
    @classmethod
    def _stops(cls, optimisation: Optimisation) -> Optimisation:
        if optimisation.failures != Failures():
            raise ValueError("failures must be left out: the stand-in is made in minutes and stops at any of them")
        if optimisation.samples_at_once is not None:
            raise ValueError("samples_at_once must be left out: the stand-in is small, and its batches go through it at once")
        return optimisation


class Pinned(Section):
    """A checkpoint of one's own, held to its hash."""

    path: Path
    """A folder or file in the project, which may be a link to where it lies."""

    md5: str | None = Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")
    """The hash `dvc add` would record; the stage refuses other bytes. With null it says what it found, to be written here."""

    @field_validator("path")
    @classmethod
    def _inside(cls, path: Path) -> Path:
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"expected a path within the project, found {path}")
        return path


class Checkpoints(Section):
    """What to build on: other people's weights, in the forms in which they released them."""

    language_model: Pinned
    """A causal language model with its tokenizer, as Hugging Face stores it; or LLaVA-1.5 or MedPLIB, of which only that is taken."""

    vision: Pinned
    """A CLIP, or its vision half alone, as Hugging Face stores it."""

    detail: Pinned
    """A ConvNeXt as Hugging Face stores it."""

    mask: Pinned
    """`sam-med2d_b.pth`."""


class OwnFoundation(Section):
    """A foundation from checkpoints instead of the stand-in."""

    checkpoints: Checkpoints = Field(alias="from")


Foundation = Annotated[
    Annotated[StandIn, Tag("(stand-in)")] | Annotated[OwnFoundation, Tag("(own)")],
    Discriminator(lambda given: "(own)" if isinstance(given, dict) and "from" in given else "(stand-in)"),
]
"""What the frozen parts are: the section holds `from` and nothing else, or the numbers of the stand-in."""
