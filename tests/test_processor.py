"""Pictures and conversations as tensors, and masks back at the size of their pictures."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from unimed.data.records import REGION, SEG
from unimed.errors import InputError
from unimed.model import tokenizer
from unimed.model.processor import IMAGE

QUESTION = "<image>Is there a nodule?"


@pytest.fixture(scope="module")
def processor():
    return tiny.processor()


def test_an_image_takes_as_many_tokens_as_it_has_patches(processor):
    ids = processor(images=[tiny.picture(0)], text=QUESTION)["input_ids"][0]
    image = tokenizer.special_id(processor.tokenizer, IMAGE)
    assert ids[:16] == [image] * 16 and ids[16] != image


@pytest.mark.parametrize(
    ("pictures", "texts", "message"),
    [
        (0, [QUESTION], "expected one picture per <image>, found 1 in the text and 0 pictures"),
        (2, [QUESTION], "expected one picture per <image>, found 1 in the text and 2 pictures"),
        (1, ["no image"], "expected one picture per <image>, found 0 in the text and 1 pictures"),
        (1, [QUESTION, QUESTION], "expected one picture per <image>, found 2 in the text and 1 pictures"),
        (1, [QUESTION + REGION], "expected one mask per <region>, found 1 in the text and 0 masks"),
    ],
)
def test_other_numbers_of_pictures_or_regions_than_the_text_has_are_errors(processor, pictures, texts, message):
    with pytest.raises(InputError, match=message):
        processor(images=[tiny.picture(seed) for seed in range(pictures)], text=texts)


def test_a_region_that_no_text_speaks_of_is_an_error(processor):
    with pytest.raises(InputError, match="expected one mask per <region>, found 0 in the text and 1 masks"):
        processor(images=[tiny.marked(tiny.picture(0), tiny.box(0, 0, 4, 4))], text=QUESTION)


def test_a_region_of_another_text_s_picture_is_an_error(processor):
    both = tiny.marked(tiny.picture(0), tiny.box(0, 0, 4, 4), tiny.box(4, 4, 8, 8))
    with pytest.raises(InputError, match="expected one mask per <region>, found 1 in the text and 2 masks"):
        processor(images=[both, tiny.picture(1)], text=[QUESTION + REGION] * 2)


def test_sixteen_bits_are_scaled_and_not_cut_off(processor):
    deep = Image.fromarray(np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32))
    pixels = processor(images=[deep], text=QUESTION)["pixel_values"]
    assert float(pixels.mean()) == pytest.approx(0.5, abs=0.01)


def test_an_empty_region_is_an_error(processor):
    with pytest.raises(InputError, match="expected regions of at least one pixel, found an empty one"):
        processor(images=[tiny.marked(tiny.picture(0), tiny.box(0, 0, 0, 0))], text=QUESTION + REGION)


def test_a_region_of_another_size_than_its_picture_is_an_error(processor):
    with pytest.raises(InputError, match="expected 32 x 32 pixels .*, found 32 x 16"):
        processor(images=[tiny.marked(tiny.picture(0), tiny.box(0, 0, 4, 4, (32, 16)))], text=QUESTION + REGION)


def test_a_text_without_pictures_has_no_pixels(processor):
    assert set(processor(text="Is it there?")) == {"input_ids", "attention_mask"}


def test_pictures_may_come_nested_by_text(processor):
    texts, pictures = ["<image><image>?", "nothing?", "<image>?"], [tiny.picture(seed) for seed in range(3)]
    flat = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    nested = processor(images=[pictures[:2], None, pictures[2:]], text=texts, padding=True, return_tensors="pt")
    torch.testing.assert_close(dict(nested), dict(flat), atol=0, rtol=0)


def test_colours_lie_between_zero_and_one_and_keep_their_place(processor):
    image = tiny.picture(0)
    pixels = processor(images=[image], text=QUESTION)["pixel_values"]
    assert torch.equal(pixels[0], torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pictures_of_any_mode_are_seen_as_colours(processor, mode):
    image = Image.new(mode, (40, 20), 1)
    assert processor(images=[image], text=QUESTION)["pixel_values"].shape == (1, 3, 32, 32)


def test_a_wide_picture_lies_in_the_middle_of_the_square(processor):
    white = Image.new("RGB", (64, 32), "white")
    found = processor(images=[white], text=QUESTION)
    assert found["image_sizes"].tolist() == [[32, 64]]
    assert torch.equal(found["pixel_values"][0, 0].any(1), torch.tensor([False] * 8 + [True] * 16 + [False] * 8))


def test_every_region_is_a_channel_behind_the_colours(processor):
    first, second, other = tiny.box(0, 0, 8, 8), tiny.box(9, 9, 1, 1), tiny.box(4, 0, 8, 16, (16, 32))
    pictures = [tiny.marked(tiny.picture(0), first, second), tiny.picture(1), tiny.marked(tiny.picture(2, 16, 32), other)]
    pixels = processor(images=pictures, text=["<image><region><region>", "<image>", "<image><region>"])["pixel_values"]
    assert pixels.shape == (3, 5, 32, 32)
    assert torch.equal(pixels[0, 3:].bool(), torch.from_numpy(np.stack([first, second])))
    assert not pixels[1, 3:].any() and not pixels[2, 4].any()
    assert torch.equal(pixels[2, 3].bool(), torch.from_numpy(tiny.box(12, 0, 8, 16)))


def test_a_target_is_the_share_of_each_pixel_that_it_covers(processor):
    target = processor.target(tiny.box(1, 0, 2, 64, (64, 64)))
    assert target[:3, 0].tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("size", [(32, 32), (20, 50), (300, 200)])
def test_masks_come_back_at_the_size_of_their_pictures(processor, size):
    mask = tiny.box(size[0] // 4, size[1] // 3, size[0] // 2, size[1] // 2, size)
    logits = 20 * processor.target(mask) - 10
    [found] = processor.masks(logits[None], torch.tensor([size]))
    assert found.shape == size
    assert (found & mask).sum() / (found | mask).sum() > 0.85


def test_a_pixel_belongs_to_a_mask_from_the_threshold_on(processor):
    logits = torch.full((1, 8, 8), float(np.log(0.3 / 0.7)))
    sizes = torch.tensor([[4, 4]])
    assert [processor.masks(logits, sizes, threshold)[0].any() for threshold in (0.29, 0.31)] == [True, False]
    assert processor.masks(torch.zeros(1, 8, 8), sizes)[0].all()


def test_conversations_with_pictures_become_inputs_in_one_call(processor):
    def said(image):
        return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Is it there?"}]}]

    conversations = [said(tiny.picture(0)), said(tiny.picture(1))]
    found = processor.apply_chat_template(conversations, tokenize=True, return_dict=True, add_generation_prompt=True)
    text = processor.apply_chat_template(conversations[0], add_generation_prompt=True)
    assert text == "<|user|><image>\nIs it there?<|end|><|assistant|>"
    assert found["input_ids"][0] == processor(images=[tiny.picture(0)], text=text)["input_ids"][0]
    assert found["pixel_values"].shape[0] == 2
    assert processor.apply_chat_template(conversations[0], tokenize=True, add_generation_prompt=True) == found["input_ids"][:1]


@pytest.mark.parametrize("text", ["37 °C, 5 µm, naïve 日本 ✓", "  two  spaces\n\tand a tab", "", "nodules unheard-of"])
def test_every_text_survives_the_tokenizer(processor, text):
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text


def test_special_tokens_are_single_and_distinct(processor):
    ids = [tokenizer.special_id(processor.tokenizer, token) for token in (IMAGE, REGION, SEG, tokenizer.END, tokenizer.PAD)]
    assert len(set(ids)) == 5


def test_a_token_that_the_tokenizer_splits_is_an_error(processor):
    with pytest.raises(InputError, match="expected <mask> to be one token of the tokenizer in memory, found"):
        tokenizer.special_id(processor.tokenizer, "<mask>")


def test_the_opening_of_an_answer_is_what_the_template_adds(processor):
    assert processor.tokenizer.decode(tokenizer.answer_opening(processor.tokenizer)) == tokenizer.ASSISTANT
