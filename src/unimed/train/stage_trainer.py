"""The trainer of stages 1 to 4: which losses count, and a batch that does not fit done in halves."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from unimed.config import MaskLoss, RouterLoss
from unimed.model import experts
from unimed.model.packing import Packing
from unimed.train import losses, readable
from unimed.train.batch import IGNORED, Batch
from unimed.train.guarded import Guarded
from unimed.train.progress import Progress
from unimed.train.readable import UNREADABLE, Item


class StageTrainer(Guarded):
    """Trainer whose loss is the weighted sum of words, masks and router terms, each logged on its own."""

    mask_loss: MaskLoss | None = None
    router_loss: RouterLoss | None = None
    progress: Progress
    shares: dict[str, float] | None = None
    """Of a part of a batch: how much each of its terms counts in that of the whole."""

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The loss of one batch, or what a part of one adds to it."""
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
            parts = {name: self.shares[name] * value for name, value in parts.items()}
        loss = torch.stack(list(parts.values())).sum()
        for name, value in parts.items():
            self.parts[name] = self.parts[name] + value.detach() if name in self.parts else value.detach()
        return (loss, outputs) if return_outputs else loss

    def gradients(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Loss and gradients of a batch, whole or in halves; the loss of a batch in which nothing could be read is no number."""
        if reasons := inputs.pop(UNREADABLE, None):
            self.tally.unreadable(self.state.global_step, reasons)
        self.progress.empty = not inputs
        if not inputs:
            return torch.full((), torch.nan, device=self.args.device)
        loss = None
        try:
            loss = super().gradients(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError as error:
            self.tally.out_of_memory(self.state.global_step, error, self.named(self.state.global_step))
        if loss is None:  # out of the handler, which holds on to all that the pass had made
            loss = self._in_halves(model, self._items(self.state.global_step))
        self.note(self.parts)
        return loss

    def _in_halves(self, model: nn.Module, items: Sequence[Item]) -> Tensor:
        """Loss and gradients of a batch by parts, halved until they fit. Raises OutOfMemoryError for one item that does not."""
        pieces = halves([items])
        while True:
            try:
                return self._accumulated(model, pieces)
            except torch.OutOfMemoryError:
                if max(map(len, pieces)) == 1:
                    raise
            pieces = halves(pieces)

    def _accumulated(self, model: nn.Module, pieces: Sequence[Sequence[Item]]) -> Tensor:
        """The gradients of all parts, summed; every mean over words or masks is taken over all parts together."""
        self.parts = {}
        model.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        collated = [self.data_collator(piece) for piece in pieces]
        batches = [batch for batch in collated if batch.keys() != {UNREADABLE}]
        for batch in batches:
            batch.pop(UNREADABLE, None)
        counts = [counts_of(batch) for batch in batches]
        total = torch.zeros((), device=self.args.device)
        for batch, own in zip(batches, counts, strict=True):
            self.shares = {name: count / max(1, sum(other[name] for other in counts)) for name, count in own.items()}
            total += super().gradients(model, batch)
        self.shares = None
        return total

    def _items(self, step: int) -> list[Any]:
        """What this process took from the data set for a step."""
        size = self.args.per_device_train_batch_size
        first = (step * self.args.world_size + self.args.process_index) * size
        return [self.train_dataset[number] for number in range(first, first + size)]

    def named(self, step: int) -> list[str]:
        """The ids of the samples of a step."""
        return [sample.sample_id for item in self._items(step) for sample in readable.samples(item)]


def halves(pieces: Sequence[Sequence[Item]]) -> list[Sequence[Item]]:
    """Every piece in two; one of a single item stays."""
    cut = [(piece[: (len(piece) + 1) // 2], piece[(len(piece) + 1) // 2 :]) for piece in pieces]
    return [half for both in cut for half in both if half]


def counts_of(batch: Batch) -> dict[str, int]:
    """What each term of a batch's loss is a mean over."""
    packing, masks = batch.get("packing"), len(batch.get("masks", ()))
    words = int((batch["labels"][:, 1:] != IGNORED).sum()) if packing is None else len(packing.wanted)
    return {"words": words, "pixel": masks, "dice": masks}


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
