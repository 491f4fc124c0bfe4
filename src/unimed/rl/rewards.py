"""What a completion earns: for keeping to the form, for the right option, for masks that fit. All in [0, 1].

MedVLM-R1 (Pan et al. 2025, arXiv:2502.19634) rewards form and letter. Where other systems let the policy write coordinates and
reward those, here the masks that its own `<SEG>` tokens decode to are rewarded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch.nn.functional import interpolate

from unimed.data.samples import Sample
from unimed.eval import answers
from unimed.model.processor import Message, UniMedProcessor
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.train import losses

Grader = Callable[..., list[float | None]]
"""Rewards of a batch of completions, as TRL asks for them; None where a reward does not apply."""

GRAIN = 1024
"""Overlaps are rewarded in steps of 1/1024: the mean of equal rewards is then that reward to the last bit, so siblings that earn
the same get an advantage of exactly 0 and not one that rounding made."""


def form(text: str) -> float:
    """1 for one think block and then one answer block, neither blank, and nothing else; otherwise 0."""
    return float(answers.split_thought(text).well_formed)


def option(text: str, options: Sequence[str], solution: str) -> float:
    """1 for a text that keeps to the form and whose answer names the option with the solution's letter; otherwise 0."""
    return float(answers.strict_answer(text, options, solution))


def pointing(overlaps: Sequence[float], emitted: int, wanted: int) -> float:
    """The mean overlap over all masks emitted or wanted, whichever are more: one too many or one missing counts as 0.

    With nothing to point at it is 1 for a completion without a mask and 0 for one with.
    """
    if not wanted:
        return float(emitted == 0)
    return round(GRAIN * sum(overlaps[:wanted]) / max(emitted, wanted)) / GRAIN


def said(processor: UniMedProcessor, completion: Sequence[int]) -> str:
    """A completion as text without its end token; special tokens are kept, because `<SEG>` is one."""
    return processor.tokenizer.decode(completion, skip_special_tokens=False).removesuffix(processor.tokenizer.eos_token)


def graders(model: UniMedForConditionalGeneration, processor: UniMedProcessor) -> list[Grader]:
    """The three rewards for TRL, each on its own items: form and option for problems with options, pointing for all others.

    They read the column `sample` of the data and the completions' ids; TRL's own text lacks special tokens.
    """

    def format_reward(completion_ids: list[list[int]], sample: list[Sample], **_: Any) -> list[float | None]:
        return [form(said(processor, ids)) if s.turns[-1].options else None for ids, s in zip(completion_ids, sample, strict=True)]

    def answer_reward(completion_ids: list[list[int]], sample: list[Sample], **_: Any) -> list[float | None]:
        pairs = [(said(processor, ids), s.turns[-1]) for ids, s in zip(completion_ids, sample, strict=True)]
        return [option(text, turn.options, turn.solution) if turn.options else None for text, turn in pairs]

    def mask_reward(prompts: list[list[Message]], completion_ids: list[list[int]], sample: list[Sample], **_: Any) -> list[float | None]:
        # Siblings that say the same share one look at their masks.
        keys = [(id(s), tuple(ids)) for s, ids in zip(sample, completion_ids, strict=True)]
        rows = {key: row for row, key in enumerate(keys) if not sample[row].turns[-1].options}
        targets = {key: sample[row].turns[-1].targets for key, row in rows.items()}
        emitted = {key: key[1].count(model.config.seg_token_id) for key in rows}
        looked = [key for key in rows if emitted[key] and targets[key]]
        found = overlaps(
            model, processor, [prompts[rows[key]] for key in looked], [key[1] for key in looked], [targets[key] for key in looked]
        )
        fits = dict(zip(looked, found, strict=True))
        earned = {key: pointing(fits.get(key, []), emitted[key], len(targets[key])) for key in rows}
        return [earned.get(key) for key in keys]

    return [format_reward, answer_reward, mask_reward]


@torch.no_grad()
def overlaps(
    model: UniMedForConditionalGeneration,
    processor: UniMedProcessor,
    prompts: Sequence[list[Message]],
    completions: Sequence[Sequence[int]],
    targets: Sequence[Sequence[Bool[np.ndarray, "_height _width"]]],
) -> list[list[float]]:
    """For each completion the Dice of its first mask with the first target, of its second with the second, and so on, in [0, 1].

    Predicted probabilities are compared, not masks cut at 0.5, at the size of the model's square frame, with the 1 above and below
    of `losses.dice`. One forward pass over prompts and completions and one decoder call serve all.
    """
    if not prompts:
        return []
    encoded = processor.apply_chat_template(list(prompts), tokenize=True, return_dict=True, add_generation_prompt=True)
    texts = [[*prompt, *completion] for prompt, completion in zip(encoded["input_ids"], completions, strict=True)]
    images = {name: encoded[name] for name in ("pixel_values", "image_sizes")}
    batch = processor.tokenizer.pad({"input_ids": texts}, return_tensors="pt") | images
    low = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}, segment=True, logits_to_keep=1).mask_logits.float()
    masks = interpolate(low.unsqueeze(1), processor.image_size, mode="bilinear", align_corners=False).squeeze(1)
    found = []
    for own, completion, wanted in zip(masks.split([_segs(model, text) for text in texts]), completions, targets, strict=True):
        own = own[len(own) - _segs(model, completion) :]
        count = min(len(own), len(wanted))
        target = [processor.target(mask).to(own.device) for mask in wanted[:count]]
        found.append((1 - losses.dice(own[:count], torch.stack(target))).tolist() if count else [])
    return found


def _segs(model: UniMedForConditionalGeneration, ids: Sequence[int]) -> int:
    return list(ids).count(model.config.seg_token_id)
