"""The trainer of stages 1 to 4: which losses count, and a batch done in portions, halved where they do not fit."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from unimed.config import MaskLoss, RouterLoss
from unimed.model import experts
from unimed.model.packing import Packing
from unimed.train import losses, portions, readable
from unimed.train.batch import Batch
from unimed.train.guarded import Guarded
from unimed.train.portions import InPortions
from unimed.train.readable import UNREADABLE, Item
from unimed.train.sums import Sums


class StageTrainer(Guarded):
    """Trainer whose loss is the weighted sum of words, masks and router terms, each logged on its own."""

    mask_loss: MaskLoss | None = None
    router_loss: RouterLoss | None = None
    data_collator: InPortions
    shares: dict[str, float] | None = None
    """Of a portion: how much each of its terms counts in that of the whole batch."""

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The loss of one batch, or what a portion adds to it."""
        inputs = dict(inputs)
        masks, packing = inputs.pop("masks", None), inputs.get("packing")
        self.progress.masked |= masks is not None
        # A packed row is read once; nobody goes on from its cache.
        outputs = model(**inputs, segment=masks is not None, **({} if packing is None else {"use_cache": False}))
        parts = {"words": outputs.loss}
        if masks is not None and self.mask_loss is not None:
            parts |= mask_terms(outputs.mask_logits, masks, self.mask_loss)
        if self.router_loss is not None:
            mask = inputs["attention_mask"].bool() if packing is None else None
            parts |= router_terms(model, mask, self.router_loss, packing)
        if self.shares is not None:
            parts = {name: weighed(value, self.shares[name]) for name, value in parts.items()}
        loss = torch.stack(list(parts.values())).sum()
        for name, value in parts.items():
            self.parts[name] = self.parts[name] + value.detach() if name in self.parts else value.detach()
        return (loss, outputs) if return_outputs else loss

    def gradients(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Loss and gradients of a batch, in portions where it has them, halved where those do not fit.

        The loss of a batch in which nothing could be read is no number.
        """
        batches, step = portions.taken(inputs), self.state.global_step
        self.progress.empty = not any(map(legible, batches))
        # Torch's way of training together expects of each process the same passes. Where one may make fewer, or more, they meet afterwards.
        meets = self.together.count > 1 and self.tally.policy.each_for_itself
        loss, halved = self._fitted(self.model if meets else model, batches)
        said = [reason for batch in batches for reason in batch.get(UNREADABLE, ())], halved, not self.progress.empty
        heard = [json.loads(each) for each in self.together.gathered(json.dumps(said).encode())] if meets else [said]
        for reasons, halved, _ in heard:
            self.tally.unreadable(step, reasons)
            if halved:
                self.tally.halved()
        if meets:
            loss = self._met(loss, sum(has_read for *_, has_read in heard))
        self.measure(loss)
        return loss

    def _fitted(self, model: nn.Module, batches: Sequence[Batch]) -> tuple[Tensor, bool]:
        """Loss and gradients of what could be read, and whether they had to be made in halves."""
        if self.progress.empty:
            return torch.full((), torch.nan, device=self.args.device), False
        loss, step, rank = None, self.state.global_step, self.args.process_index
        try:
            loss = self._accumulated(model, batches)
        except torch.OutOfMemoryError as error:
            self.tally.out_of_memory(step, error, ids_of(self._items(step, rank)))
        if is_halved := loss is None:  # out of the handler, which holds on to all that the pass had made
            loss = self._in_halves(model, self._items(step, rank))
        self.note(self.parts)
        return loss, is_halved

    def _met(self, loss: Float[Tensor, ""], readers: int) -> Float[Tensor, ""]:
        """The mean loss of those processes that could read something; gradients become the mean of theirs in all."""
        if not readers:
            return loss
        trained = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        reached = self.together.greatest(*(parameter.grad is not None for _, parameter in trained))
        met = dict(own for own, is_reached in zip(trained, reached, strict=True) if is_reached)
        self.progress.waiting -= met.keys()
        for parameter in met.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        sums = [torch.zeros_like(loss) if self.progress.empty else loss, *(parameter.grad for parameter in met.values())]
        self.together.add(sums)
        torch._foreach_div_(sums, readers)
        return sums[0]

    def _in_halves(self, model: nn.Module, items: Sequence[Item]) -> Tensor:
        """Loss and gradients of a batch in smaller portions, halved until they fit. Raises OutOfMemoryError for one item that does not."""
        most = self.data_collator.most
        while True:
            most = (most + 1) // 2
            model.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            try:
                return self._accumulated(model, portions.taken(replace(self.data_collator, most=most)(items)))
            except torch.OutOfMemoryError:
                if most == 1:
                    raise

    def _accumulated(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor:
        """Loss and gradients of all portions, summed; every mean over words, masks or decisions is taken over all of them together.

        All but the balance of a router, which is no mean: each portion's is taken on its own, as each process's is.
        """
        self.parts, losses = {}, []
        batches = [{name: value for name, value in batch.items() if name != UNREADABLE} for batch in filter(legible, batches)]
        # Of a single one nothing is counted: it lies on the GPU, which would have to be waited for.
        shares = portions.shares(batches, self.model.config.router_level) if len(batches) > 1 else [None]
        sums = Sums(model.parameters())
        for batch, share in zip(batches, shares, strict=True):
            self.shares = share
            losses.append(super().gradients(model, portions.placed(batch, self.args.device)))
            if len(batches) > 1:
                sums.take()
        sums.give()
        return torch.stack(losses).sum()

    def _items(self, step: int, rank: int) -> list[Any]:
        """What a process took from the data set for a step."""
        size = self.args.per_device_train_batch_size
        first = (step * self.args.world_size + rank) * size
        return [self.train_dataset[number] for number in range(first, first + size)]

    def named(self, step: int) -> list[str]:
        """The ids of the samples of a step, of all processes."""
        return [name for rank in range(self.args.world_size) for name in ids_of(self._items(step, rank))]


def ids_of(items: Sequence[Item]) -> list[str]:
    """The ids of the samples in what loaders took."""
    return [sample.sample_id for item in items for sample in readable.samples(item)]


def legible(batch: Batch) -> bool:
    """Whether a batch holds more than what could not be read."""
    return batch.keys() != {UNREADABLE}


def weighed(mean: Float[Tensor, ""], share: float) -> Float[Tensor, ""]:
    """What a portion's mean adds to that of the whole.

    A mean over nothing adds a zero with a gradient, which other processes wait for.
    """
    return share * (mean if share else mean.nan_to_num())


def mask_terms(low: Float[Tensor, "mask low low"], target: Float[Tensor, "mask size size"], weights: MaskLoss) -> dict[str, Tensor]:
    """Pixel and overlap loss of predicted masks, averaged over masks, at the target's size, in float32."""
    logits = interpolate(low.float().unsqueeze(1), target.shape[-1], mode="bilinear", align_corners=False).squeeze(1)
    return {
        "pixel": weights.pixel_weight * losses.pixel(logits, target).mean(),
        "dice": weights.dice_weight * losses.dice(logits, target).mean(),
    }


def router_terms(
    model: nn.Module, mask: Bool[Tensor, "batch seq"] | None, weights: RouterLoss, packing: Packing | None = None
) -> dict[str, Tensor]:
    """Balance and z-loss over what the routers decided in the forward pass just made.

    On the token level every position that is no padding counts, image positions too; on the sequence level every sequence once.
    """
    logits = experts.take_decisions(model, mask, packing)
    return {
        "balance": weights.balance_weight * experts.balance_loss(logits),
        "z": weights.z_weight * experts.z_loss(logits),
    }
