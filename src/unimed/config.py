"""params.yaml as types: one frozen section per key, unknown keys are errors, the note under each field is its documentation."""

from typing import Literal, Self

from pydantic import Field, model_validator

from unimed.sections import MaskLoss, Optimisation, RouterLoss, Section


class Split(Section):
    """Shares of the cases in each split, in [0, 1], one in all."""

    train: float = Field(ge=0, le=1)
    val: float = Field(ge=0, le=1)
    test: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"train, val and test must sum to 1, found {self.train} + {self.val} + {self.test}")
        return self


class Ingest(Section):
    """What is let in from a download and how it is packed."""

    split: Split
    max_bad_fraction: float = Field(ge=0, le=1)
    """Share of images, masks or conversations that may be faulty before the stage fails; each kind counts for itself."""

    max_pixels: int = Field(gt=0, le=2**28)
    """Pixels of an image or mask, read from its header: what claims more is not unpacked."""

    shard_size_mb: int = Field(gt=0)
    """A shard is closed before it grows past this."""

    licences: dict[str, str]
    """Licence of a data set by its name, where the download does not say."""


class Subset(Section):
    """How many conversations of a task to take from each split, and of which; null takes all."""

    train: int | None = Field(gt=0)
    val: int | None = Field(gt=0)
    test: int | None = Field(gt=0)
    modalities: list[str] | None = None
    datasets: list[str] | None = None
    classes: list[str] | None = None
    """Classes of all masks that a conversation names; one that names no mask is taken whatever stands here."""

    licences: list[str] | None = None
    excluded_datasets: list[str] = []
    """Data sets known to be bad, by name."""

    excluded_sources: list[str] = []
    """Annotation files known to be bad, by name without folder."""


class Subsets(Section):
    """A subset for each task that is trained."""

    alignment: Subset
    vqa: Subset
    grounding: Subset
    reasoning: Subset


Severity = Literal["stop", "quarantine", "warn"]
"""What a broken promise of the data contract does: end the stage, cost the row, or be told."""


class Validate(Section):
    """Bounds of the data contract."""

    min_area_px: int = Field(gt=0)
    """Pixels a mask covers at least."""

    max_area_fraction: float = Field(gt=0, le=1)
    """Share of its image a mask covers at most: more is taken for an inverted mask."""

    max_components: int = Field(gt=0)
    """Connected parts a mask has at most: more are taken for noise."""

    least_masks_of_class: int = Field(ge=0)
    least_images_of_modality: int = Field(ge=0)
    """Masks of each class and images of each modality that a subset has at least; 0 asks for none."""

    licences: tuple[str, ...] | None
    """Licences of data that may be used; null allows all."""

    most_glyphs: int | None = Field(default=None, ge=1)
    """Shapes in a row like letters and digits that an image shows at most: more are taken for text burned into it; null does not look."""

    severities: dict[str, Severity] = {}
    """Another severity for promises, by name."""

    max_bad_fraction: float = Field(ge=0, le=1)
    """Share of the rows of a table that may break the contract before the stage fails."""


Numbers = dict[str, int | float | bool | str | list[int]]
"""Fields of one of transformers' own configurations, which check them."""


class Vlm(Section):
    """The architecture: what every training stage and everything that loads a model must agree on."""

    vision: Numbers | None = None
    """CLIPVisionConfig of the ViT; a checkpoint says its own, then nothing stands here."""

    detail: Numbers | None = None
    """ConvNextConfig of the detail tower; likewise."""

    text: Numbers | None = None
    """Configuration of the language model, Llama's unless `model_type` says otherwise; likewise. The vocabulary is its tokenizer's."""

    mask: Numbers
    """SamMed2DConfig of the mask encoder and decoder; {} is the released SAM-Med2D, whose file says nothing of its sizes."""

    fusion_blocks: list[int]
    """ViT blocks, counted from one, after which a detail map is fused in: one per stage of the detail tower."""
    fusion_hidden_size: int = Field(gt=0)
    vision_feature_layer: int = Field(lt=0)
    """Which ViT hidden state is projected; -1 is the last."""
    canvases: list[tuple[int, int]] = []
    """Rows and columns of tiles that an image can be laid on, FILA's are [1, 2], [2, 1], [2, 2], [3, 1] and [1, 3]; none: one square."""
    pixel_shuffle: int = 1
    """Patches per side of the square that becomes one token of the language model: 2 makes a quarter of the tokens."""
    fused_stages: Literal["all", "last", "none"] = "all"
    """Ablation: which stages of the detail tower are fused into the ViT."""
    tile_detail: Literal["slice", "whole"] = "slice"
    """Ablation: whether a tile is fused with its own window of the canvas's detail maps or with all of them, pooled to its size."""


class LoraTraining(Optimisation):
    """An expert's adapter and how it is trained."""

    rank: int = Field(gt=0)
    scaling: float = Field(gt=0)
    """Factor on the adapter's output (peft's alpha over rank)."""

    turns: int = Field(gt=0)
    """Conversations about the same image that are joined into one sequence, so that it is encoded once for all."""


class MoeRouter(Optimisation, RouterLoss):
    """The routers of stage 4, the only thing that trains there."""

    level: Literal["token", "sequence"]
    """Whether every token is routed by its own state, or a whole sequence once by its prompt."""

    choice: Literal["soft", "top1"]
    """Whether experts are mixed, or the best is taken alone with a straight-through gradient."""

    turns: int = Field(gt=0)
    grounding_share: float = Field(gt=0, lt=1)
    """Share of the samples that ask for masks; the rest are questions."""

    mask_loss: MaskLoss

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.failures.out_of_memory == "halve":
            raise ValueError("failures.out_of_memory must be stop here: how evenly experts are used is a fact of the whole batch")
        return self


class GroundingTraining(LoraTraining):
    """The grounding expert: an adapter, the rows of `<SEG>`, its projection and the mask decoder."""

    vqa_share: float = Field(ge=0, lt=1)
    """Share of samples that are questions, from which the expert learns when not to point."""

    mask_loss: MaskLoss


class Evaluate(Section):
    """How much of the held-out data is scored and how."""

    batch_size: int = Field(gt=0)
    max_items: int | None = Field(default=None, gt=0)
    """Items per question type at most, the same ones for every model; none means all."""

    max_new_tokens: int = Field(gt=0)
    bootstrap_samples: int = Field(gt=0)
