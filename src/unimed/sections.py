"""What sections of params.yaml have in common: how a stage trains, by which losses, and what it does about what goes wrong."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A section of params.yaml: values never change, unknown keys and values out of range are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class MaskLoss(Section):
    """How much the two mask losses count beside one nat of text."""

    pixel_weight: float = Field(ge=0)
    dice_weight: float = Field(ge=0)


class RouterLoss(Section):
    """Pull toward even use of the experts and toward small router logits."""

    balance_weight: float = Field(ge=0)
    z_weight: float = Field(ge=0)


class Failures(Section):
    """What is done about what goes wrong in a training. Each event is named in the log and counted, whatever is done."""

    not_finite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is no number: the run ends, or the step leaves weights and optimizer as they were."""
    unreadable: Literal["stop", "skip"] = "stop"
    """A sample whose image or mask cannot be read: the run ends, or the batch goes on without it."""
    out_of_memory: Literal["stop", "halve"] = "stop"
    """A batch that does not fit: the run ends, or the batch is done in halves, and halves of those, that make the same step together."""
    most_skipped: int = Field(default=0, ge=0)
    """How many steps may be skipped, and how many samples: each is counted on its own, and one more of either ends the run."""

    @property
    def skips(self) -> bool:
        """Whether a step may be left out."""
        return "skip" in (self.not_finite, self.unreadable)

    @property
    def each_for_itself(self) -> bool:
        """Whether, of processes that train together, one may go on after what happens to it alone."""
        return self.unreadable == "skip" or self.out_of_memory == "halve"

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.skips != (self.most_skipped > 0):
            raise ValueError(f"most_skipped must be above 0 where something is skipped and only there, is {self.most_skipped}")
        return self


class Optimisation(Section):
    """AdamW with linear warm-up and cosine decay to zero; steps are optimizer steps, always."""

    batch_size: int = Field(gt=0)
    """Samples of an optimizer step, over all processes of the run together."""
    max_steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(default=20, ge=0)
    deepspeed: Path | None = None
    """A DeepSpeed configuration as JSON, for runs under torchrun; none means plain torch."""
    row_tokens: int | None = Field(default=None, gt=0)
    """Tokens of a packed row, in which samples stand one after the other; `batch_size` then counts rows. None pads samples."""
    samples_at_once: int | None = Field(default=None, gt=0)
    """Samples, or rows, of a process that go through the model together, for as many passes as a step needs; null takes all at once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of all weights and states. In bfloat16 the optimizer steps float32 copies of what trains."""
    compile: bool = False
    """Whether layers are compiled, which takes half a minute and pays on a GPU. Needs packed rows."""
    float8: bool = False
    """Whether the frozen language model multiplies in eight bits, which is faster on a GPU, where a first look allows it."""
    flash_attn: bool = False
    """Whether packed rows attend by the package flash-attn-4, which is faster on Hopper and Blackwell GPUs. Must be installed there."""
    workers: int = Field(default=0, ge=0)
    """Processes that read batches ahead; with none a batch is read when it is wanted."""
    failures: Failures = Failures()
    """What is done about a loss that is no number, a sample that cannot be read, and a batch that does not fit."""

    @model_validator(mode="after")
    def _static_shapes(self) -> Self:
        if self.compile and self.row_tokens is None:
            raise ValueError("compile needs row_tokens: every new length of a padded batch would be compiled anew")
        return self

    @model_validator(mode="after")
    def _half(self) -> Self:
        if self.flash_attn and (self.row_tokens is None or self.dtype != "bfloat16"):
            raise ValueError("flash_attn needs row_tokens and dtype bfloat16: it attends within packed rows, in half precision")
        return self

    @model_validator(mode="after")
    def _rounded(self) -> Self:
        if self.float8 and (self.dtype != "bfloat16" or self.deepspeed is not None):
            raise ValueError("float8 needs dtype bfloat16 and no deepspeed, which parts weights among processes")
        return self

    @model_validator(mode="after")
    def _can_go_on(self) -> Self:
        if self.deepspeed is not None and self.failures != Failures():
            raise ValueError("failures must be left out under deepspeed, which steps on its own")
        if self.deepspeed is not None and self.samples_at_once is not None:
            raise ValueError("samples_at_once must be left out under deepspeed, which steps at every backward pass")
        if 1 in (self.batch_size, self.samples_at_once) and self.failures.out_of_memory == "halve":
            name = "batch_size" if self.batch_size == 1 else "samples_at_once"
            raise ValueError(f"failures.out_of_memory must be stop where {name} is 1: there is nothing to halve")
        return self
