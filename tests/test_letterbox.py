"""The square frame: windows computed by hand, masks and boxes that come back, regions that never vanish."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from unimed.errors import InputError
from unimed.model.letterbox import Letterbox, area_means

SHAPES = [(256, 192), (200, 120), (97, 333), (512, 400), (31, 20), (480, 640)]


def rectangle(height, width):
    """A mask that covers the middle of an image, a little off centre."""
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height * 3 // 4, width // 3 : width * 7 // 8] = True
    return mask


def logits_of(coverage):
    """Logits whose zero line is half coverage."""
    return torch.from_numpy(coverage)[None] * 16 - 8


def dice(found, truth):
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


@pytest.mark.parametrize(
    ("width", "first", "past"), [(256, 0, 64), (192, 8, 56), (170, 10.75, 53.25), (128, 16, 48), (96, 20, 44), (64, 24, 40)]
)
def test_the_content_lies_where_it_was_computed_by_hand(width, first, past):
    for box, (height_window, width_window) in (
        (Letterbox(256, width, 256), (256, width)),
        (Letterbox(width, 256, 256), (width, 256)),
        (Letterbox(1024, 4 * width, 256), (256, width)),
    ):
        assert (box.content_height, box.content_width) == (height_window, width_window)
        offset, length = (box.left, width_window) if height_window == 256 else (box.top, height_window)
        assert (offset / 4, (offset + length) / 4) == (first, past)


@pytest.mark.parametrize("width", [192, 170, 128, 96, 64])
def test_a_quarter_size_map_is_cut_at_the_content_and_nowhere_else(width):
    """A column painted on the small map lands at its own place in the image, for every width."""
    box = Letterbox(256, width, 256)
    column = 30
    small = torch.full((1, 64, 64), -8.0)
    small[:, :, column] = 8.0
    painted = (box.unmask(small)[0] > 0).all(dim=0).nonzero().flatten()
    centre_in_image = 4 * (column + 0.5) - box.left
    assert painted.float().mean() + 0.5 == pytest.approx(centre_in_image)
    assert len(painted) == 4


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_rectangle_comes_back(height, width):
    box, truth = Letterbox(height, width, 256), rectangle(height, width)
    found = box.unmask(logits_of(box.mask(truth)))[0].numpy() > 0
    assert found.shape == truth.shape
    assert dice(found, truth) > 0.97


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_rectangle_comes_back_from_a_quarter_size_map(height, width):
    box, truth = Letterbox(height, width, 256), rectangle(height, width)
    small = functional.avg_pool2d(torch.from_numpy(box.mask(truth))[None], 4)[0].numpy()
    assert dice(box.unmask(logits_of(small))[0].numpy() > 0, truth) > 0.97


def test_an_image_of_the_frame_s_size_is_left_alone():
    box, random = Letterbox(64, 64, 64), np.random.default_rng(0)
    pixels, mask = random.integers(0, 256, (64, 64, 3), np.uint8), random.random((64, 64)) > 0.5
    logits = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    assert (box.image(pixels) == pixels).all()
    assert (box.mask(mask) == mask).all()
    assert torch.equal(box.unmask(logits), logits)


def test_an_image_that_only_needs_padding_is_copied():
    pixels = np.random.default_rng(0).integers(1, 256, (64, 41, 3), np.uint8)
    frame = Letterbox(64, 41, 64).image(Image.fromarray(pixels))
    assert (frame[:, 11:52] == pixels).all()
    assert not frame[:, :11].any()
    assert not frame[:, 52:].any()


def test_grey_pixels_become_three_equal_channels():
    grey = np.random.default_rng(0).integers(0, 256, (50, 80), np.uint8)
    for picture in (grey, Image.fromarray(grey)):
        frame = Letterbox(50, 80, 32).image(picture)
        assert frame.shape == (32, 32, 3)
        assert (frame == frame[..., :1]).all()


def test_shrinking_an_image_averages_and_enlarging_keeps_a_flat_one_flat():
    stripes = np.tile(np.array([[0, 200]], np.uint8), (128, 64))
    assert (Letterbox(128, 128, 64).image(stripes) == 100).all()
    assert (Letterbox(8, 8, 64).image(np.full((8, 8), 77, np.uint8)) == 77).all()


def test_one_pixel_of_a_large_narrow_image_survives():
    box = Letterbox(2000, 100, 256)
    share = box.content_height * box.content_width / (2000 * 100)
    for row, column in ((0, 0), (1234, 56), (1999, 99)):
        mask = np.zeros((2000, 100), bool)
        mask[row, column] = True
        assert box.mask(mask).sum() == pytest.approx(share, rel=1e-5)


def test_a_sliver_still_gets_a_pixel():
    box = Letterbox(5000, 3, 64)
    assert (box.content_width, box.mask(np.ones((5000, 3), bool)).sum()) == (1, 64)


def test_means_cut_through_values():
    values = np.array([0.0, 3.0, 6.0])
    assert area_means(values, 2) == pytest.approx([1.0, 5.0])
    assert area_means(values, 6) == pytest.approx([0, 0, 3, 3, 6, 6])
    assert area_means(values, 1) == pytest.approx([3.0])


def test_every_pixel_doubled_changes_nothing_in_the_frame():
    mask = np.random.default_rng(0).random((90, 60)) > 0.7
    once, twice = Letterbox(90, 60, 48), Letterbox(180, 120, 48)
    assert once.content == twice.content
    assert np.allclose(once.mask(mask), twice.mask(mask.repeat(2, axis=0).repeat(2, axis=1)), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_boxes_and_points_go_there_and_back(height, width):
    box, random = Letterbox(height, width, 256), np.random.default_rng(0)
    points, boxes = random.random((5, 2)) * (width, height), random.random((3, 4)) * 20
    assert box.points_to_image(box.points_to_frame(points)) == pytest.approx(points)
    assert box.boxes_to_image(box.boxes_to_frame(boxes)) == pytest.approx(boxes)


def test_a_box_lands_on_the_mask_it_encloses():
    box = Letterbox(400, 200, 64)
    mask = np.zeros((400, 200), bool)
    mask[100:200, 50:150] = True
    x, y, width, height = box.boxes_to_frame(np.array([50.0, 100.0, 100.0, 100.0])).tolist()
    assert (x, y, width, height) == (24, 16, 16, 16)
    expected = np.zeros((64, 64), np.float32)
    expected[16:32, 24:40] = 1
    assert np.allclose(box.mask(mask), expected)


def test_the_first_pixel_s_centre_stays_the_centre_of_what_it_covers():
    assert Letterbox(10, 10, 40).points_to_frame(np.array([0.0, 0.0])).tolist() == [1.5, 1.5]
    assert Letterbox(10, 5, 40).points_to_frame(np.array([0.0, 0.0])).tolist() == [11.5, 1.5]


def test_a_side_that_was_rounded_is_stretched_to_the_whole_window():
    """97 rows become 97 * 256 / 333 = 74.57, which is 75: one row is 75 / 97 of the frame's, and the first begins at 90."""
    box = Letterbox(97, 333, 256)
    assert box.points_to_frame(np.array([[-0.5, -0.5], [332.5, 96.5]])) == pytest.approx(np.array([[-0.5, 89.5], [255.5, 164.5]]))
    assert box.boxes_to_frame(np.array([0.0, 0.0, 333.0, 97.0])).tolist() == pytest.approx([0, 90, 256, 75])


def test_a_pixel_that_grew_in_the_frame_hears_all_that_lies_on_it():
    """One pixel over four columns of the frame: they weigh 5, 7, 7 and 5 of 24."""
    logits = torch.tensor([24.0, 0.0, 0.0, 48.0]).expand(1, 4, 4)
    assert Letterbox(1, 1, 4).unmask(logits).item() == pytest.approx(15)


def test_shrinking_counts_each_pixel_where_it_lies_and_enlarging_is_bicubic():
    row = np.array([[0, 0, 0, 240]], np.uint8).repeat(4, 0)
    assert Letterbox(4, 4, 2).image(row)[..., 0].tolist() == [[0, 120]] * 2
    edge = np.array([[100, 100, 200, 200]], np.uint8).repeat(4, 0)
    enlarged = Letterbox(4, 4, 16).image(edge)
    assert enlarged.min() < 100 and enlarged.max() > 200, "a cubic swings beyond an edge, a line does not"


def test_no_mask_comes_back_as_none():
    assert Letterbox(30, 20, 64).unmask(torch.empty(0, 16, 16)).shape == (0, 30, 20)


def test_another_size_than_promised_is_an_error_that_names_both():
    box = Letterbox(30, 20, 64)
    with pytest.raises(InputError, match="expected 30 x 20 .* found 20 x 30"):
        box.image(np.zeros((20, 30), np.uint8))
    with pytest.raises(InputError, match="expected 30 x 20 .* found 31 x 20"):
        box.mask(np.zeros((31, 20), bool))


def test_an_image_without_pixels_is_an_error():
    with pytest.raises(InputError, match="at least one pixel, found 0 x 20 in 64"):
        Letterbox(0, 20, 64)
