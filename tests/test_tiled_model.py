"""The whole model on canvases: batches, padding, regions, masks, answers and training batches."""

import pytest
import tiled
import tiny
import torch
from torch.nn.functional import adaptive_avg_pool2d

from unimed.data import masks
from unimed.eval import predict
from unimed.model import views
from unimed.model.assemble import Assembled
from unimed.train.batch import IGNORED, Collator, blanked
from unimed.train.loop import train_only

CLOSE = {"atol": 1e-5, "rtol": 0}
VARIANTS = [
    {},
    {"pixel_shuffle": 2},
    {"tile_detail": "whole"},
    {"fused_stages": "last"},
    {**tiny.EXPERTS, "router_level": "sequence"},
    {**tiny.EXPERTS, "router_level": "token", "router_choice": "top1"},
]


@pytest.fixture(scope="module")
def model():
    return tiled.stirred()


def picture(seed, grid, *regions):
    size = tiled.SHAPES[grid]
    return tiny.marked(tiny.picture(seed, *size), *[tiny.box(*place, of=size) for place in regions])


def mixed():
    """Texts with two images and three regions, none, one of another shape, and one image with `<SEG>`s; and their pictures."""
    texts = tiny.ask("<image> and <image> differ? <region><region><region>", "Is it there?", "<image>Which structure? <region>")
    pictures = [picture(0, (2, 2), (0, 0, 8, 8)), picture(1, (1, 2), (3, 4, 9, 9), (0, 0, 1, 1)), picture(2, (3, 1), (40, 2, 12, 9))]
    return [*texts, "<image>Where? <SEG> and <SEG>"], [pictures[:2], [], pictures[2:], [picture(3, (1, 3))]]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_batch_gives_what_its_texts_give_alone(changes):
    model, (texts, pictures) = tiled.stirred(**changes), mixed()
    together = tiled.rows(model, tiled.inputs(pictures, *texts, **changes))
    for text, own, found in zip(texts, pictures, together, strict=True):
        [alone] = tiled.rows(model, tiled.inputs(own, text, **changes))
        torch.testing.assert_close(found, alone, **CLOSE)


def test_empty_views_behind_an_image_change_nothing(model):
    texts, pictures = mixed()
    inputs = tiled.inputs(pictures, *texts)
    padded = inputs | {"pixel_values": torch.nn.functional.pad(inputs["pixel_values"], (0, 0, 0, 0, 0, 0, 0, 3))}
    for found, expected in zip(tiled.rows(model, padded), tiled.rows(model, inputs), strict=True):
        assert torch.equal(found, expected)


def test_every_view_of_every_image_is_read(model):
    texts, pictures = mixed()
    inputs = tiled.inputs(pictures[:1], *texts[:1])
    [before] = tiled.rows(model, inputs)
    for image, count in ((0, 5), (1, 3)):
        for view in range(count):
            pixels = inputs["pixel_values"].clone()
            pixels[image, view, :3] = pixels[image, view, :3].flip(-1)
            [after] = tiled.rows(model, inputs | {"pixel_values": pixels})
            assert (after[-1] - before[-1]).abs().max() > 1e-4, (image, view)


def test_image_tokens_hold_the_views_in_order_square_first(model):
    texts, pictures = mixed()
    inputs, seen = tiled.inputs(pictures, *texts), {}
    hook = model.model.language_model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
        hook.remove()
        encoder, pixels = model.model.encoder, inputs["pixel_values"]
        shapes = [(2, 2), (1, 2), (3, 1), (1, 3)]
        own = [encoder(pixels[i : i + 1, 0, :3], pixels[i : i + 1, 1:, :3], [grid]) for i, grid in enumerate(shapes)]
        expected = model.model.projector(torch.cat(own)).flatten(0, 1)
    torch.testing.assert_close(seen["inputs_embeds"][inputs["input_ids"] == model.config.image_token_id], expected, **CLOSE)


@pytest.mark.parametrize("shuffle", [1, 2])
def test_a_region_is_the_mean_of_its_tokens_on_the_tiles(shuffle):
    model, (texts, pictures) = tiled.stirred(pixel_shuffle=shuffle), mixed()
    inputs, seen = tiled.inputs(pictures, *texts, pixel_shuffle=shuffle), {}
    hook = model.model.language_model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    ids, side = inputs["input_ids"], 4 // shuffle
    tokens = seen["inputs_embeds"][ids == model.config.image_token_id].split([n * side**2 for n in (5, 3, 4, 4)])
    expected = []
    for image, channel in ((0, 3), (1, 3), (1, 4), (2, 3)):
        cover = adaptive_avg_pool2d(inputs["pixel_values"][image, 1:, channel], side).flatten()
        of_tiles = tokens[image][side**2 :]
        cover = cover[: len(of_tiles)]
        expected.append(cover @ of_tiles / cover.sum())
    torch.testing.assert_close(seen["inputs_embeds"][ids == model.config.region_token_id], torch.stack(expected), **CLOSE)


@torch.no_grad()
def test_a_mask_is_drawn_on_the_square_of_the_last_image_before_its_seg_token(model):
    shapes, seen = [(2, 2), (1, 2), (3, 1)], []
    pictures = [picture(seed, grid) for seed, grid in enumerate(shapes)]
    texts = ["<image>Where? <SEG> <image>And here? <SEG>", "<image>Where? <SEG>"]
    inputs = tiled.inputs(pictures, *texts)
    hook = model.grounding.register_forward_pre_hook(lambda _, args: seen.append(args))
    together = model(**inputs, segment=True).mask_logits
    hook.remove()
    [(images, _, index)] = seen
    assert index.tolist() == [0, 1, 2]
    assert torch.equal(images, tiny.processor().pixels(pictures))
    alone = [
        model(**tiled.inputs(own, text), segment=True).mask_logits for own, text in ((pictures[:2], texts[0]), (pictures[2:], texts[1]))
    ]
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)


@pytest.mark.parametrize("changes", [*VARIANTS[-2:], {"pixel_shuffle": 2}], ids=str)
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_batch_is_answered_as_its_texts_are_alone_with_and_without_a_cache(changes, use_cache):
    model, (texts, pictures) = tiled.stirred(**changes), mixed()
    settings = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "use_cache": use_cache}
    inputs = tiled.inputs(pictures[:3], *texts[:3], **changes)
    words = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    for row, (text, own) in enumerate(zip(texts[:3], pictures[:3], strict=True)):
        alone = tiled.inputs(own, text, **changes)
        assert torch.equal(words[row], model.generate(**alone, **settings | {"use_cache": True})[0, alone["input_ids"].shape[1] :])


def test_several_answers_to_one_text_see_the_same_images(model):
    texts, pictures = mixed()
    inputs = tiled.inputs(pictures[:3], *texts[:3])
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "use_cache": True}
    expected = model.generate(**inputs, **settings, do_sample=False)
    found = model.generate(**inputs, **settings, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(found, expected.repeat_interleave(2, 0))
    assert len(expected[:, inputs["input_ids"].shape[1] :].unique(dim=0)) == 3


def test_pixels_that_do_not_fit_the_canvases_are_errors(model):
    texts, pictures = mixed()
    inputs = tiled.inputs(pictures[:1], *texts[:1])
    sizes, pixels = inputs["image_sizes"], inputs["pixel_values"]
    with pytest.raises(ValueError, match="expected image_sizes for 2 images on canvases, found none"):
        model(**inputs | {"image_sizes": None})
    with pytest.raises(ValueError, match="expected image_sizes for 2 images on canvases, found 1"):
        views.read(model.config, pixels, sizes[:1])
    with pytest.raises(ValueError, match="expected 5 views of every image or more, found pixels of \\(2, 4, 5, 32, 32\\)"):
        model(**inputs | {"pixel_values": pixels[:, :4]})
    with pytest.raises(ValueError, match="expected 5 views of every image or more, found pixels of \\(2, 5, 32, 32\\)"):
        model(**inputs | {"pixel_values": pixels[:, 0]})
    with pytest.raises(ValueError, match="expected 160 image tokens for the pixels given, found 128"):
        model(**inputs | {"image_sizes": sizes[:1].expand(2, 2)})


def samples(folder):
    """A question about a region and another about an image on 2 x 2 tiles, and a request to point at one on 3 x 1."""
    wide, tall = tiled.SHAPES[2, 2], tiled.SHAPES[3, 1]
    asked = tiny.turn("Is <region> the liver?", "no", regions=[tiny.box(0, 0, 9, 9, of=wide)], side=wide)
    pointed = tiny.turn("Segment it.", "It is <SEG>.", targets=[tiny.box(20, 2, 30, 10, of=tall)], side=tall)
    return [
        tiny.sample(folder, asked, tiny.turn("Why?", "It is there.", side=wide), side=wide),
        tiny.sample(folder, pointed, seed=1, side=tall),
    ]


def test_the_labels_are_the_answers_however_many_tokens_the_images_take(tmp_path):
    processor, found = tiled.processor(), samples(tmp_path)
    made = Collator(processor)(found)
    assert made["image_sizes"].tolist() == [[40, 33], [60, 15]]
    assert (made["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<image>")).sum(1).tolist() == [80, 64]
    for labels, one in zip(made["labels"], found, strict=True):
        assert processor.tokenizer.decode(labels[labels != IGNORED]) == "".join(turn.answer + "<|end|>" for turn in one.turns)


def test_a_training_batch_moves_fusions_and_projector_and_has_a_mask_for_every_target(tmp_path):
    model = tiled.stirred()
    train_only(model, ["model.projector", "model.encoder.fusions"])
    made = Collator(tiled.processor())(samples(tmp_path))
    targets = made.pop("masks")
    outputs = model(**made, segment=True)
    outputs.loss.backward()
    assert targets.shape == outputs.mask_logits.shape == (1, 32, 32)
    assert all(value.grad is not None and value.grad.any() for value in model.parameters() if value.requires_grad)


def test_blanked_views_are_black_and_keep_their_regions(tmp_path):
    made = Collator(tiled.processor())(samples(tmp_path))
    blank = blanked(made)
    assert not blank["pixel_values"][:, :, :3].any()
    assert torch.equal(blank["pixel_values"][:, :, 3:], made["pixel_values"][:, :, 3:])
    assert made["pixel_values"][0, 4, :3].any()


def test_answers_carry_masks_of_their_pictures_sizes():
    model = tiled.stirred()
    made = Assembled(model, tiled.processor())
    pictures = [picture(0, (2, 2)), picture(1, (1, 3))]
    asked = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Segment it."}]}] for _ in pictures]
    inputs = tiled.inputs(pictures, *made.processor.apply_chat_template(asked, add_generation_prompt=True))
    with torch.no_grad():
        # Whatever the state, `<SEG>` comes next.
        hidden = model.model(**inputs).last_hidden_state[:, -1]
        model.grounding.seg_output.copy_(torch.linalg.pinv(hidden) @ torch.full((2,), 50.0))
    found = predict.answer(made, asked, pictures, max_new_tokens=1)
    assert [answer.text for answer in found] == ["<SEG>", "<SEG>"]
    for answer, grid in zip(found, [(2, 2), (1, 3)], strict=True):
        assert masks.decode(answer.rles[0], *tiled.SHAPES[grid]).shape == tiled.SHAPES[grid]
