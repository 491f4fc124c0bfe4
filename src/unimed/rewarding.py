"""How stage 5 trains, as the section `grpo` of params.yaml: a cold start, then rewarded answers."""

from typing import Literal, Self

from pydantic import Field, model_validator

from unimed.sections import MaskLoss, Optimisation


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

    groups_at_once: int | None = Field(default=None, gt=0)
    """Prompts of a process whose answers go through the layers together, for as many passes as a step needs; null takes all at once."""

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

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if (self.failures.unreadable, self.failures.out_of_memory) != ("stop", "stop"):
            raise ValueError("failures must stop at all but not_finite here: answers are compared in whole groups; cold_start may do both")
        return self

    @model_validator(mode="after")
    def _own_loop(self) -> Self:
        if (self.row_tokens, self.workers) != (None, 0):
            raise ValueError(
                "row_tokens, compile and workers must be left out here: rewarded answers are not packed; cold_start may have all"
            )
        if self.float8:
            raise ValueError("float8 must be left out here: answers are written by the weights as they are; cold_start may have it")
        if self.samples_at_once is not None:
            raise ValueError("samples_at_once must be left out here, where groups_at_once takes its place; cold_start may have it")
        if self.deepspeed is not None and self.groups_at_once is not None:
            raise ValueError("groups_at_once must be left out under deepspeed, which steps at every backward pass")
        if (self.cold_start.dtype, self.dtype) == ("bfloat16", "float32"):
            raise ValueError("dtype must be bfloat16 where cold_start's is: it trains the same weights, which stay rounded")
        return self
