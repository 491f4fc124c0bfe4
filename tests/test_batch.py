"""Samples as batches: what is learned is exactly the answers, and every pixel is where its token says."""

import numpy as np
import pytest
import tiny
import torch

from unimed.errors import InputError
from unimed.model.grounding import image_of_each
from unimed.model.processor import UniMedProcessor
from unimed.train import batch
from unimed.train.batch import IGNORED, Collator

SQUARE = (tiny.SIZE, tiny.SIZE)
LIVER, NODULE, LINE = tiny.box(2, 2, 12, 12), tiny.box(20, 18, 5, 6), tiny.box(0, 0, 1, 32)
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' + m['content'] + ('</s>' if m['role'] == 'assistant' else ' ') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
"""A template after which the first word of an answer and the space before it are one token."""

FORGETFUL_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + (m['content'] if loop.last else 'forgotten') + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

WORDY_TEMPLATE = (
    "\n{% macro head(name, number) %}{{ name + ' ' + number|string + ':<|user|>' }}{% endmacro %}"
    "{% if messages[0]['role'] == 'user' %}{% set first = messages[0] %}{% set messages = messages[1:] %}{% endif %}"
    "{{ bos_token or 'Medical images. ' }}{{ head('user', 0) + first['content'] + '<|end|>;\n' }}"
    "{% for m in messages %}{{ head(m['role'], loop.index) + m['content'] + '<|end|>;' }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}{{ head('assistant', messages|length + 1) }}{% endif %}"
)
"""A template that opens with a line and words of its own, puts the first turn aside, numbers the rest and goes on after their ends."""


@pytest.fixture
def processor():
    return tiny.processor()


@pytest.fixture
def samples(tmp_path):
    """Three samples: three turns with regions and a target, two targets in one answer, and an absent target."""
    return [
        tiny.sample(
            tmp_path,
            tiny.turn("Is <region> left of <region>?", "no", regions=[LIVER, NODULE]),
            tiny.turn("Which structure is marked? <region>", "  the liver, 37 °C\n", regions=[LINE]),
            tiny.turn("Segment it.", "It is <SEG>.", targets=[LIVER]),
        ),
        tiny.sample(tmp_path, tiny.turn("Segment both.", "<SEG> and <SEG>", targets=[NODULE, LIVER]), seed=1),
        tiny.sample(tmp_path, tiny.turn("Segment the nodule.", "There is no nodule."), seed=2),
    ]


def learned(processor, row) -> list[str]:
    """The runs of labelled tokens of a row as text."""
    edges = torch.nonzero(torch.diff((row != IGNORED).int(), prepend=torch.zeros(1), append=torch.zeros(1))).flatten().tolist()
    return [processor.tokenizer.decode(row[start:end]) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def test_the_labels_are_the_answers_to_the_letter_with_their_end(processor, samples):
    made = Collator(processor)(samples)
    for row, sample in zip(made["labels"], samples, strict=True):
        assert learned(processor, row) == [turn.answer + "<|end|>" for turn in sample.turns]


def test_labels_stand_where_their_tokens_stand(processor, samples):
    made = Collator(processor)(samples)
    answers = made["labels"] != IGNORED
    assert torch.equal(made["labels"][answers], made["input_ids"][answers])
    assert not (answers & ~made["attention_mask"].bool()).any()


def test_a_conversation_starts_with_its_image_and_says_all_turns(processor, samples):
    text = processor.apply_chat_template(batch.messages(samples[0]))
    turns = "".join(f"<|user|>{turn.question}<|end|><|assistant|>{turn.answer}<|end|>" for turn in samples[0].turns)
    assert text == turns.replace("<|user|>", "<|user|><image>\n", 1)


def test_pixels_are_the_samples_own_with_all_regions_in_order(processor, samples):
    pixels = Collator(processor)(samples)["pixel_values"]
    assert pixels.shape == (3, 6, 32, 32)
    for row, sample in zip(pixels, samples, strict=True):
        assert torch.equal(row[:3], torch.from_numpy(np.array(sample.load_image())).permute(2, 0, 1) / 255)
    assert torch.equal(pixels[0, 3:].bool(), torch.from_numpy(np.stack([LIVER, NODULE, LINE])))
    assert not pixels[1:, 3:].any()


def test_target_masks_come_in_the_order_of_their_seg_tokens(processor, samples):
    made = Collator(processor)(samples)
    assert torch.equal(made["masks"].bool(), torch.from_numpy(np.stack([LIVER, NODULE, LIVER])))
    seg = processor.tokenizer.convert_tokens_to_ids("<SEG>")
    assert (made["input_ids"] == seg).sum(1).tolist() == [1, 2, 0]


def test_a_batch_without_targets_has_no_masks(processor, samples):
    assert "masks" not in Collator(processor)(samples[2:])


def test_a_model_reads_a_batch_and_draws_a_mask_for_every_target(processor, samples):
    made = Collator(processor)(samples)
    masks = made.pop("masks")
    found = tiny.stirred()(**made, segment=True)
    assert found.mask_logits.shape == masks.shape
    assert found.loss.isfinite()


def test_another_text_may_be_asked_of_the_same_samples(processor, samples):
    short = Collator(processor, text=lambda sample: batch.messages(sample)[:2])(samples[:1])
    assert learned(processor, short["labels"][0]) == ["no<|end|>"]


def test_answer_spans_are_the_answers_and_their_ends(processor, samples):
    conversation = batch.messages(samples[0])
    text, spans = batch.rendered(processor, conversation)
    assert text == processor.apply_chat_template(conversation)
    assert [text[start:end] for start, end in spans] == ["no<|end|>", "  the liver, 37 °C\n<|end|>", "It is <SEG>.<|end|>"]


def literally(processor, conversation) -> list[int]:
    """The labels of one conversation, each character of it asked whether it came with an answer."""
    text, owner = "", []
    for number, message in enumerate(conversation, 1):
        is_answer = message["role"] == "assistant"
        for so_far, mine in ((number - is_answer, False), (number, is_answer)):
            grown = processor.apply_chat_template(conversation[:so_far], add_generation_prompt=is_answer and not mine)
            owner += [mine] * (len(grown) - len(text))
            text = grown
    expanded, owners = "", []
    for place, mine in enumerate(owner):
        more = text[place] if not text.startswith("<image>", place) else "<image>" * (processor.tokens_per_view - 1) + "<"
        expanded, owners = expanded + more, owners + [mine] * len(more)
    assert expanded == processor.expand(text, [SQUARE] * text.count("<image>"))
    encoded = processor.tokenizer(expanded, return_offsets_mapping=True, add_special_tokens=False)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [number if all(owners[start:end]) else IGNORED for number, (start, end) in pairs]


@pytest.mark.parametrize("template", [None, WORDY_TEMPLATE], ids=["own", "wordy"])
def test_labels_are_those_of_asking_every_character_whether_it_came_with_an_answer(processor, samples, template):
    processor = with_template(processor, template or processor.tokenizer.chat_template)
    said = [batch.messages(sample) for sample in samples]
    conversations = [*said, said[0][:3], said[0][:1], said[0] * 4]
    found = batch.labelled(processor, conversations, [[SQUARE]] * 5 + [[SQUARE] * 4])
    for labels, kept, conversation in zip(found["labels"], found["attention_mask"].bool(), conversations, strict=True):
        assert labels[kept].tolist() == literally(processor, conversation)
        assert (labels[~kept] == IGNORED).all()


def test_a_conversation_without_a_message_is_refused(processor):
    with pytest.raises(InputError, match="expected a conversation of at least one message, found an empty one"):
        batch.labelled(processor, [[]], [[]])


def with_template(processor, template) -> UniMedProcessor:
    processor.tokenizer.chat_template = template
    return processor


def test_a_template_that_rewrites_earlier_turns_is_refused(processor, samples):
    with pytest.raises(InputError, match="expected a chat template that only appends, found one that rewrites earlier turns"):
        Collator(with_template(processor, FORGETFUL_TEMPLATE))(samples[:1])


def test_a_template_that_joins_answers_to_what_stands_before_is_refused(processor, tmp_path):
    glued = tiny.sample(tmp_path, tiny.turn("Is it?", "is there"))
    with pytest.raises(InputError, match="expected a chat template whose answers begin with a token of their own, found"):
        Collator(with_template(processor, PLAIN_TEMPLATE))([glued])


def test_blanked_pixels_are_black_and_regions_stay(processor, samples):
    made = Collator(processor)(samples)
    before = made["pixel_values"].clone()
    blank = batch.blanked(made)
    assert not blank["pixel_values"][:, :3].any()
    assert torch.equal(blank["pixel_values"][:, 3:], before[:, 3:])
    assert torch.equal(made["pixel_values"], before)
    assert blank["input_ids"] is made["input_ids"]


def test_each_seg_looks_at_the_last_image_before_it():
    """Two tokens per image. I is an image token, S a `<SEG>`: three rows with two images, one and two."""
    rows = ["IISIISSx", "xxIISxxx", "IISxIISx"]
    seg, image = (torch.tensor([[letter == which for letter in row] for row in rows]) for which in "SI")
    assert image_of_each(seg, image, [2] * 5).tolist() == [0, 1, 1, 2, 3, 4]


def test_adjacent_images_are_told_apart():
    rows = ["IIIISx", "SIIxxx"]
    seg, image = (torch.tensor([[letter == which for letter in row] for row in rows]) for which in "SI")
    assert image_of_each(seg[:1], image[:1], [2, 2]).tolist() == [1]
    with pytest.raises(ValueError, match="expected an image before every <SEG>"):
        image_of_each(seg, image, [2] * 3)


def test_no_seg_looks_at_nothing():
    assert image_of_each(torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool), [3, 3]).tolist() == []
