"""A model's answers to samples: the words it writes and, for every `<SEG>` among them, a mask at the image's own size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unimed.data import masks
from unimed.data.records import SEG
from unimed.data.samples import Sample
from unimed.model.assemble import Assembled
from unimed.model.processor import Message, Picture, UniMedProcessor
from unimed.train.batch import blanked, labelled, messages, picture


@dataclass(frozen=True)
class Answer:
    """What a model said about one sample; `rles` holds one COCO RLE per `<SEG>`, in order."""

    text: str
    rles: tuple[str, ...]


def question(sample: Sample) -> list[Message]:
    """A sample as a conversation that waits for its last answer."""
    return messages(sample)[:-1]


def answers(
    made: Assembled,
    samples: Sequence[Sample],
    max_new_tokens: int,
    batch_size: int,
    ask: Callable[[Sample], list[Message]] = question,
    blank: bool = False,
    temperature: float = 0.0,
) -> Iterator[Answer]:
    """Answers in the samples' order, greedy at temperature 0; with `blank` every image is black."""
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        conversations, pictures = [ask(sample) for sample in part], [picture(sample) for sample in part]
        yield from answer(made, conversations, pictures, max_new_tokens, blank, temperature)


@torch.no_grad()
def answer(
    made: Assembled,
    conversations: Sequence[list[Message]],
    pictures: Sequence[Picture],
    max_new_tokens: int,
    blank: bool = False,
    temperature: float = 0.0,
) -> list[Answer]:
    """Answers to conversations that wait for one, one picture each: greedy at temperature 0, else drawn from all words."""
    processor, model = made.processor, made.model.eval()
    texts = [processor.apply_chat_template(said, add_generation_prompt=True) for said in conversations]
    batch = dict(processor(images=list(pictures), text=texts, padding=True, return_tensors="pt"))
    batch = {name: value.to(model.device) for name, value in (blanked(batch) if blank else batch).items()}
    tokenizer = processor.tokenizer
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    drawn_by = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    written = model.generate(**batch, max_new_tokens=max_new_tokens, use_cache=True, **drawn_by, **ends)
    said = [_until_end(tokenizer.decode(row), tokenizer.eos_token) for row in written[:, batch["input_ids"].shape[1] :]]
    pointed = mask_logits(made, conversations, said, batch["pixel_values"], batch["image_sizes"])
    found = zip(said, pointed, batch["image_sizes"], strict=True)
    return [Answer(text, rles(made.processor, logits, size)) for text, logits, size in found]


def _until_end(text: str, end: str) -> str:
    return text.split(end)[0]


@torch.no_grad()
def mask_logits(
    made: Assembled, conversations: Sequence[list[Message]], said: Sequence[str], pixels: Tensor, sizes: Tensor
) -> list[Tensor]:
    """For every answer the low-resolution logits of its `<SEG>` tokens' masks, from one pass over questions and answers."""
    rows = [row for row, text in enumerate(said) if SEG in text]
    found = [torch.empty(0)] * len(said)
    if rows:
        complete = [[*conversations[row], {"role": "assistant", "content": said[row]}] for row in rows]
        batch = labelled(made.processor, complete, [[size] for size in sizes[rows].tolist()])
        tokens = {name: batch[name].to(pixels.device) for name in ("input_ids", "attention_mask")}
        shown = {"pixel_values": pixels[rows], "image_sizes": sizes[rows]}
        logits = made.model(**tokens, **shown, segment=True, logits_to_keep=1).mask_logits.cpu()
        for row, own in zip(rows, logits.split([said[row].count(SEG) for row in rows]), strict=True):
            found[row] = own
    return found


def rles(processor: UniMedProcessor, logits: Tensor, size: Tensor) -> tuple[str, ...]:
    """Masks as COCO RLE at the size of their image, (height, width); one after the other, since an image may be large."""
    return tuple(masks.encode(mask) for low in logits for mask in processor.masks(low[None], size[None]))
