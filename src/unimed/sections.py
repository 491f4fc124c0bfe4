"""What sections of params.yaml have in common, and the one that every training stage has."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A section of params.yaml: values never change, unknown keys and values out of range are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of all weights and states. In bfloat16 the optimizer steps float32 copies of what trains."""
    compile: bool = False
    """Whether layers are compiled, which takes half a minute and pays on a GPU. Needs packed rows."""
    workers: int = Field(default=0, ge=0)
    """Processes that read batches ahead; with none a batch is read when it is wanted."""

    @model_validator(mode="after")
    def _static_shapes(self) -> Self:
        if self.compile and self.row_tokens is None:
            raise ValueError("compile needs row_tokens: every new length of a padded batch would be compiled anew")
        return self
