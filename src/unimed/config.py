"""params.yaml as types: one frozen section per key, unknown keys are errors, the note under each field is its documentation."""

from typing import Literal, Self

from pydantic import Field, model_validator

from unimed.sections import Optimisation, Section


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
    """How many conversations of a task to take from each split; null takes all."""

    train: int | None = Field(gt=0)
    val: int | None = Field(gt=0)
    test: int | None = Field(gt=0)


class Subsets(Section):
    """A subset for each task that is trained."""

    alignment: Subset
    vqa: Subset
    grounding: Subset
    reasoning: Subset


class Validate(Section):
    """Bounds of the data contract."""

    min_area_px: int = Field(gt=0)
    """Pixels a mask covers at least."""

    max_area_fraction: float = Field(gt=0, le=1)
    """Share of its image a mask covers at most: more is taken for an inverted mask."""

    max_bad_fraction: float = Field(ge=0, le=1)
    """Share of the rows of a table that may break the contract before the stage fails."""


Numbers = dict[str, int | float | bool | str | list[int]]
"""Fields of one of transformers' own configurations, which check them."""


class Vlm(Section):
    """The architecture: what every training stage and everything that loads a model must agree on."""

    vision: Numbers
    """CLIPVisionConfig of the ViT."""

    detail: Numbers
    """ConvNextConfig of the detail tower."""

    text: Numbers
    """LlamaConfig of the language model; the vocabulary comes from its tokenizer."""

    mask: Numbers
    """SamMed2DConfig of the mask encoder and decoder."""

    fusion_blocks: list[int]
    """ViT blocks, counted from one, after which a detail map is fused in: one per stage of the detail tower."""

    fusion_hidden_size: int = Field(gt=0)
    vision_feature_layer: int = Field(lt=0)
    """Which ViT hidden state is projected; -1 is the last."""


class Foundation(Section):
    """The stand-in for pre-trained towers: built small and shown phantoms that no later stage sees."""

    cases: int = Field(gt=0)
    """Made-up patients shown to the towers, four slices each; their seed differs from every other phantom's."""

    vocabulary: int = Field(gt=256)
    """Entries of the byte-level tokenizer."""

    vision: Optimisation
    masks: Optimisation
    language: Optimisation
    questions_per_sequence: int = Field(gt=0)


class MaskLoss(Section):
    """How much the two mask losses count beside one nat of text."""

    pixel_weight: float = Field(ge=0)
    dice_weight: float = Field(ge=0)


class LoraTraining(Optimisation):
    """An expert's adapter and how it is trained."""

    rank: int = Field(gt=0)
    scaling: float = Field(gt=0)
    """Factor on the adapter's output (peft's alpha over rank)."""

    turns: int = Field(gt=0)
    """Conversations about the same image that are joined into one sequence, so that it is encoded once for all."""


class RouterLoss(Section):
    """Pull toward even use of the experts and toward small router logits."""

    balance_weight: float = Field(ge=0)
    z_weight: float = Field(ge=0)


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


class GroundingTraining(LoraTraining):
    """The grounding expert: an adapter, the rows of `<SEG>`, its projection and the mask decoder."""

    vqa_share: float = Field(ge=0, lt=1)
    """Share of samples that are questions, from which the expert learns when not to point."""

    mask_loss: MaskLoss


class Grpo(Optimisation):
    """An adapter on the routed model: first shown how to reason, then rewarded. `batch_size` counts prompts."""

    rank: int = Field(gt=0)
    scaling: float = Field(gt=0)
    """Factor on the adapter's output (peft's alpha over rank)."""

    cold_start: Optimisation
    """Supervised steps on right answers before any reward, where the data has rationales."""

    mask_loss: MaskLoss
    """Of the mask prompts in the cold start."""

    direct_share: float = Field(ge=0, lt=1)
    """Share of the cold start in which problems are answered without a thought."""

    vqa_share: float = Field(ge=0, lt=1)
    """Share of questions without options in the cold start, so that they are not unlearned."""

    grounding_share: float = Field(ge=0, lt=1)
    """Share of mask prompts, in the cold start and among the rewarded."""

    group_size: int = Field(gt=1)
    """Answers sampled per prompt. With one there is nothing to compare."""

    updates_per_rollout: int = Field(ge=1)
    """Optimizer steps on the same answers. With one, no answer is older than the policy and nothing is ever clipped."""

    temperature: float = Field(gt=0)
    max_completion_length: int = Field(gt=0)
    """Tokens of an answer, its end included."""

    epsilon: float = Field(gt=0, lt=1)
    epsilon_high: float = Field(gt=0)
    """How far the probability of a token may fall or rise from one rollout before its gradient is cut."""

    kl_weight: float = Field(ge=0)
    """Pull toward the policy after the cold start, per token, in nats."""

    normalise: Literal["each_reward", "group", "batch", "none"]
    """What rewards are divided by after the group's mean is taken off: each reward's own spread in the group (GDPO), that of
    their sum in the group (GRPO) or in the batch, or nothing (Dr. GRPO)."""

    format_weight: float = Field(ge=0)
    answer_weight: float = Field(ge=0)
    mask_weight: float = Field(ge=0)

    @model_validator(mode="after")
    def _room_for_thoughts(self) -> Self:
        if self.direct_share + self.vqa_share + self.grounding_share >= 1:
            found = f"{self.direct_share} + {self.vqa_share} + {self.grounding_share}"
            raise ValueError(f"direct_share, vqa_share and grounding_share must leave room for thoughts, found {found}")
        return self


class Evaluate(Section):
    """How much of the held-out data is scored and how."""

    batch_size: int = Field(gt=0)
    max_items: int | None = Field(default=None, gt=0)
    """Items per question type at most, the same ones for every model; none means all."""

    max_new_tokens: int = Field(gt=0)
    bootstrap_samples: int = Field(gt=0)
