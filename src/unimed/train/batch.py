"""Samples as training batches: conversations through the chat template, labels on the answers, target masks per `<SEG>`."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from unimed.data.samples import Sample
from unimed.errors import InputError
from unimed.model.processor import Message, Picture, UniMedProcessor

IGNORED = -100
Batch = dict[str, Tensor]


def messages(sample: Sample) -> list[Message]:
    """A sample as a conversation that starts with its image."""
    said: list[Message] = []
    for number, turn in enumerate(sample.turns):
        image = [{"type": "image"}] if number == 0 else []
        said.append({"role": "user", "content": [*image, {"type": "text", "text": turn.question}]})
        said.append({"role": "assistant", "content": turn.answer})
    return said


def picture(sample: Sample) -> Picture:
    """A sample's image with all regions that its questions mark, in order."""
    return Picture(sample.load_image(), tuple(mask for turn in sample.turns for mask in turn.regions))


def answer_spans(processor: UniMedProcessor, conversation: Sequence[Message]) -> list[tuple[int, int]]:
    """Where in the rendered text each answer lies, end-of-turn included, as character positions.

    The template is asked, not parsed: an answer is what the text grows by when its turn is added. Raises InputError for a
    template that rewrites earlier turns.
    """
    whole, spans = processor.apply_chat_template(list(conversation)), []
    for end in range(2, len(conversation) + 1, 2):
        before = processor.apply_chat_template(list(conversation[: end - 1]), add_generation_prompt=True)
        after = processor.apply_chat_template(list(conversation[:end]))
        if not (whole.startswith(after) and after.startswith(before)):
            raise InputError("expected a chat template that only appends, found one that rewrites earlier turns")
        spans.append((len(before), len(after)))
    return spans


def labelled(processor: UniMedProcessor, conversations: Sequence[Sequence[Message]]) -> Batch:
    """`input_ids`, `attention_mask` and `labels`: the ids again where a token lies within an answer, IGNORED elsewhere.

    Raises InputError for a template after which the first token of an answer would hold more than the answer.
    """
    texts = [processor.apply_chat_template(list(conversation)) for conversation in conversations]
    expanded = [processor.expand(text) for text in texts]
    encoded = processor.tokenizer(expanded, padding=True, return_tensors="pt", return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    answer = torch.zeros_like(ids, dtype=torch.bool)
    for row, (text, conversation) in enumerate(zip(texts, conversations, strict=True)):
        first, last = offsets[row].unbind(1)
        for start, end in answer_spans(processor, conversation):
            shift = len(processor.expand(text[:start])) - start
            if bool(((first < start + shift) & (last > start + shift)).any()):
                raise InputError("expected a chat template whose answers begin with a token of their own, found one that joins them on")
            answer[row] |= (first >= start + shift) & (last <= end + shift)
    answer &= encoded["attention_mask"].bool()
    return {"input_ids": ids, "attention_mask": encoded["attention_mask"], "labels": ids.where(answer, torch.tensor(IGNORED))}


class Collator:
    """Batches of samples: model inputs, `labels` on answer tokens only and `masks`, one target per `<SEG>`.

    `masks` holds coverage in [0, 1] in the model's square frame; it is absent when no sample has a target.
    """

    def __init__(self, processor: UniMedProcessor, text: Callable[[Sample], list[Message]] = messages):
        self.processor, self.text = processor, text

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """One batch; its image rows are in the samples' order."""
        batch = labelled(self.processor, [self.text(sample) for sample in samples])
        batch["pixel_values"] = self.processor.pixels([picture(sample) for sample in samples])
        targets = [self.processor.target(mask) for sample in samples for turn in sample.turns for mask in turn.targets]
        return batch | ({"masks": torch.stack(targets)} if targets else {})


def blanked(batch: Batch) -> Batch:
    """The batch with its images black and its regions kept."""
    pixels: Int[Tensor, "image channel size size"] = batch["pixel_values"].clone()
    pixels[:, :3] = 0
    return batch | {"pixel_values": pixels}
