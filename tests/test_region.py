"""Regions of a question: each becomes one vector, however small, and the answer hangs on it."""

import numpy as np
import pytest
import tiny
import torch

from unimed.model.region import pool

GRID = torch.arange(4.0).view(1, 4, 1).expand(-1, -1, 2)
"""Features of a 2 x 2 grid: each patch holds its number, twice."""


@pytest.fixture(scope="module")
def model():
    return tiny.stirred()


@torch.no_grad()
def last(model, picture, text):
    """Logits of the answer's first word."""
    return model(**tiny.inputs([picture], *tiny.ask(text))).logits[0, -1]


def differ(a, b):
    return (a - b).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 8, 8), 1.5),
        ((0, 0, 4, 4), 0.0),
        ((4, 4, 4, 4), 3.0),
        ((0, 0, 8, 4), 1.0),
        ((0, 3, 4, 2), 0.5),
        ((0, 3, 4, 3), 2 / 3),
        ((7, 0, 1, 1), 2.0),
    ],
)
def test_a_region_is_the_mean_of_its_patches_by_area(box, expected):
    mask = torch.from_numpy(tiny.box(*box, of=(8, 8))).float()
    assert pool(GRID, mask[None]).tolist() == [[pytest.approx(expected)] * 2]


def test_the_faintest_touch_of_a_region_still_has_its_patch():
    mask = torch.zeros(1, 8, 8)
    mask[0, 7, 7] = 1e-6
    torch.testing.assert_close(pool(GRID, mask), torch.full((1, 2), 3.0))


def test_no_region_has_no_vector():
    assert pool(torch.zeros(0, 4, 2), torch.zeros(0, 8, 8)).shape == (0, 2)


def test_half_precision_features_keep_their_type():
    assert pool(GRID.bfloat16(), torch.ones(1, 8, 8)).dtype == torch.bfloat16


def test_the_answer_changes_with_the_region(model):
    text, image = "<image>Which structure is marked? <region>", tiny.picture(0)
    found = [last(model, tiny.marked(image, tiny.box(*place)), text) for place in ((0, 0, 8, 8), (16, 16, 8, 8), (0, 0, 32, 32))]
    assert differ(found[0], found[1]) and differ(found[0], found[2]) and differ(found[1], found[2])


def test_a_region_of_one_pixel_counts(model):
    text, image = "<image>Which structure is marked? <region>", tiny.picture(0, 500, 300)
    found = [last(model, tiny.marked(image, tiny.box(row, 150, 1, 1, (500, 300))), text) for row in (0, 499)]
    assert found[0].isfinite().all() and differ(*found)


def test_regions_count_in_the_order_in_which_the_question_names_them(model):
    text, image = "<image>Is <region> left of <region>?", tiny.picture(0)
    first, second = tiny.box(0, 0, 8, 8), tiny.box(20, 20, 9, 9)
    assert differ(last(model, tiny.marked(image, first, second), text), last(model, tiny.marked(image, second, first), text))


def test_each_of_several_regions_stands_in_its_own_place(model):
    """What stands in a region's place is that region's vector, whichever picture of the batch it belongs to."""
    masks = [tiny.box(0, 0, 8, 8), tiny.box(20, 20, 9, 9), tiny.box(5, 9, 3, 17)]
    pictures = [tiny.marked(tiny.picture(0), *masks[:2]), tiny.picture(1), tiny.marked(tiny.picture(2), masks[2])]
    inputs = tiny.inputs(pictures, *tiny.ask("<image><region> and <region>?", "<image>?", "<image>Which <region>?"))
    backbone, seen = model.model, {}
    hook = backbone.language_model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        backbone(**inputs)
        hook.remove()
        features = backbone.image_features(inputs["pixel_values"][:, :3])
    found = seen["inputs_embeds"][inputs["input_ids"] == model.config.region_token_id]
    shares = torch.from_numpy(np.stack(masks)).float().unflatten(1, (4, 8)).unflatten(3, (4, 8)).mean((2, 4)).flatten(1)
    expected = torch.stack([share @ features[image] / share.sum() for share, image in zip(shares, (0, 0, 2), strict=True)])
    torch.testing.assert_close(found, expected)


def test_a_region_in_a_later_turn_counts(model):
    said = [
        {"role": "user", "content": "<image>Is there a nodule?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "Which structure is marked? <region>"},
    ]
    text = tiny.processor().apply_chat_template(said, add_generation_prompt=True)
    places = (tiny.box(0, 0, 8, 8), tiny.box(20, 20, 9, 9))
    with torch.no_grad():
        found = [model(**tiny.inputs([tiny.marked(tiny.picture(0), place)], text)).logits[0, -1] for place in places]
    assert differ(*found)


def test_the_picture_around_a_region_still_counts(model):
    text, mask = "<image>Which structure is marked? <region>", tiny.box(0, 0, 8, 8)
    found = [last(model, tiny.marked(tiny.picture(seed), mask), text) for seed in (0, 1)]
    assert differ(*found)
