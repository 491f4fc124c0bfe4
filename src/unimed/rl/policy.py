"""TRL's GRPOTrainer, made to fit: a batch in pieces, checkpoints and watched steps of ours, and figures that are numbers."""

import math
from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from trl import GRPOTrainer

from unimed.rl import pieces
from unimed.train.guarded import Guarded
from unimed.train.sums import Sums


class Policy(Guarded, GRPOTrainer):
    """GRPOTrainer whose batch may go through the model in pieces, that logs only numbers, and takes no step that is not finite."""

    rows_at_once: int | None = None
    """Answers, siblings in whole groups, that go through the model together; all where none."""
    sums: Sums
    """Of the gradients of a batch's pieces."""

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **kwargs: Any
    ) -> tuple[Tensor | None, ...]:
        """TRL's, with each prompt read once for all its answers, and no more answers at once than fit."""
        kwargs["batch_size"] = self.rows_at_once
        with self.accelerator.unwrap_model(self.model).model.prompts_of(input_ids.shape[1] - logits_to_keep):
            return super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> pieces.Answers:
        return pieces.numbered(super()._generate_and_score_completions(inputs), self.num_generations)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Float[Tensor, "answer reward"]:
        """The rewards; notes the share of groups in which all siblings earn the same.

        TRL's own `frac_reward_zero_std` looks at the batch as a whole when rewards are normalised one by one.
        """
        earned = super()._calculate_rewards(*args, **kwargs)
        self._metrics["train"]["groups_without_spread"].append(without_spread(earned, self.num_generations).float().mean().item())
        return earned

    def gradients(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Loss and gradients of all answers, those of pieces added up in float32."""
        loss = super().gradients(model, inputs, num_items_in_batch)
        self.add_up()
        return loss

    def add_up(self) -> None:
        """After the backward pass of what `compute_loss` gave: let the gradients be those of all pieces."""
        if self.sums.totals:
            self.sums.take()
            self.sums.give()

    def compute_loss(self, model: Any, inputs: pieces.Answers, *args: Any, **kwargs: Any) -> Float[Tensor, ""]:
        """TRL's loss of all answers, noted. Pieces but the last have left their gradients when it returns.

        TRL divides each piece's loss by the words of the whole batch, so that the pieces' sum is its loss. What it logs is of the whole.
        """
        parts = pieces.cut(inputs, self.rows_at_once or len(inputs[pieces.GROUP]))
        self.sums = Sums(self.model.parameters())
        logged, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        losses: list[Tensor] = []
        for part in parts:
            if losses:
                self.accelerator.backward(losses[-1])
                self.sums.take()
                losses[-1] = losses[-1].detach()
            losses.append(super().compute_loss(model, part, *args, **kwargs))
        words = self.accelerator.reduce(torch.stack([part["completion_mask"].sum() for part in parts]))
        for name, value in pieces.whole(self._metrics["train"], words).items():
            logged[name].append(value)
        self._metrics["train"] = logged
        loss = torch.stack(losses).sum()
        self.parts = {"loss": loss.detach()}
        return loss

    def named(self, step: int) -> list[str]:
        """The ids of the samples whose prompts a step is about."""
        count = self.args.per_device_train_batch_size * self.args.world_size // self.num_generations
        first = step // self.num_iterations * count
        return [sample.sample_id for sample in self.train_dataset[first : first + count]["sample"]]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log without the rewards that applied to nothing since the last time, and without what is no number.

        The mean reward of a rollout is what the next checkpoint is judged by.
        """
        metrics = self._metrics["train"]
        for reward in metrics.get("reward", ()):
            self.measure(torch.tensor(-reward))
        for name in [name for name, values in metrics.items() if not any(map(math.isfinite, values))]:
            del metrics[name]
        super().log(logs, *args, **kwargs)


def without_spread(earned: Float[Tensor, "answer reward"], siblings: int) -> Tensor:
    """For each group of siblings whether every reward that applies is the same for all of them."""
    grouped = earned.unflatten(0, (-1, siblings)).nan_to_num(nan=-1.0)
    return (grouped == grouped[:, :1]).flatten(1).all(1)
