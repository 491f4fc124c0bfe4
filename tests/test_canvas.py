"""Which canvas an image gets, how many tokens that costs, and where its pixels, regions and masks lie on it."""

import numpy as np
import pytest
import tiled
import tiny
import torch
from PIL import Image
from transformers import CLIPVisionConfig, ConvNextConfig
from transformers.image_processing_utils import select_best_resolution

from unimed.errors import InputError
from unimed.model.canvas import NO_TILES, choose, cut, join, squares
from unimed.model.configuration import UniMedConfig
from unimed.model.letterbox import Letterbox
from unimed.model.processor import UniMedProcessor

FULL_SIZE = {
    "vision_config": CLIPVisionConfig(image_size=336, patch_size=14),
    "detail_config": ConvNextConfig(hidden_sizes=[192, 384, 768, 1536], depths=[3, 3, 27, 3]),
    "canvases": tiled.CANVASES,
}
"""The numbers of CLIP ViT-L/14-336 and ConvNeXt-L that token counts depend on."""


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        (336, 672, (1, 2)),  # fits exactly: nothing shrinks, nothing is wasted
        (672, 336, (2, 1)),
        (672, 672, (2, 2)),
        (1008, 336, (3, 1)),
        (336, 1008, (1, 3)),
        (512, 512, (2, 2)),  # 1 x 2 would shrink it to 336 x 336
        (300, 500, (1, 2)),  # fits into 1 x 2, 2 x 2 and 1 x 3 unshrunk: fewest tiles
        (500, 300, (2, 1)),
        (100, 100, (1, 2)),  # fits everywhere; 1 x 2 and 2 x 1 waste the same: the first
        (2000, 3000, (2, 2)),  # scale 672 / 3000 = 0.224 against 336 / 2000 = 0.168 on 1 x 2 and 1 x 3
        (1000, 2000, (1, 2)),  # scale 0.336 on 1 x 2, 2 x 2 and 1 x 3: fewest tiles
        (1000, 2500, (1, 3)),  # scale 336 / 1000 on 1 x 3 against 672 / 2500 = 0.2688 on 1 x 2
        (2500, 1000, (3, 1)),
        (1, 5000, (1, 3)),  # a line of pixels: scale 1008 / 5000
    ],
)
def test_an_image_gets_the_canvas_that_keeps_most_of_it_on_fewest_tiles(height, width, grid):
    assert choose(height, width, tiled.CANVASES, 336) == grid


def test_the_choice_is_llava_next_s():
    """But for pictures a few pixels thin, where theirs rounds to nothing."""
    sizes = np.random.default_rng(0).integers(32, 3000, (2000, 2)).tolist()
    theirs = [select_best_resolution((h, w), [(336 * rows, 336 * columns) for rows, columns in tiled.CANVASES]) for h, w in sizes]
    assert [choose(h, w, tiled.CANVASES, 336) for h, w in sizes] == [(h // 336, w // 336) for h, w in theirs]
    assert len(set(theirs)) == 5


def test_a_turned_image_gets_the_turned_canvas():
    sizes = np.random.default_rng(1).integers(1, 2000, (500, 2)).tolist()
    turned = tiled.CANVASES[1::-1] + tiled.CANVASES[2:]
    assert all(choose(w, h, turned, 336) == choose(h, w, tiled.CANVASES, 336)[::-1] for h, w in sizes)


def test_without_canvases_an_image_has_no_tiles():
    assert choose(400, 900, [], 336) == NO_TILES
    assert squares(NO_TILES) == 1


def test_images_of_full_size_take_the_tokens_that_fila_gives_them():
    config = UniMedConfig(**FULL_SIZE)
    processor = UniMedProcessor.of(config, tiny.processor().tokenizer)
    assert (config.image_size, config.tokens_per_view) == (768, 576)
    shapes = [(336, 672), (672, 336), (1008, 336), (336, 1008), (672, 672)]
    assert [processor.tokens(shape) for shape in shapes] == [1728, 1728, 2304, 2304, 2880]
    shuffled = UniMedProcessor.of(UniMedConfig(**FULL_SIZE, pixel_shuffle=2), tiny.processor().tokenizer)
    assert [shuffled.tokens(shape) for shape in shapes] == [432, 432, 576, 576, 720]
    plain = UniMedProcessor.of(UniMedConfig(**FULL_SIZE | {"canvases": []}), tiny.processor().tokenizer)
    assert [plain.tokens(shape) for shape in shapes] == [576] * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canvases": [(1, 1)]}, "canvases must hold rows and columns of two tiles or more, are \\[\\(1, 1\\)\\]"),
        ({"canvases": [[0, 3]]}, "canvases must hold .* are \\[\\[0, 3\\]\\]"),
        ({"canvases": [[2]]}, "canvases must hold .* are \\[\\[2\\]\\]"),
        ({"pixel_shuffle": 5}, "pixel_shuffle must divide the 24 patches of a side, is 5"),
        ({"pixel_shuffle": 0}, "pixel_shuffle must divide the 24 patches of a side, is 0"),
        ({"fused_stages": "first"}, "fused_stages"),
        ({"tile_detail": "none"}, "tile_detail"),
    ],
)
def test_a_configuration_that_no_image_fits_is_refused(changes, message):
    with pytest.raises(Exception, match=message):
        UniMedConfig(**FULL_SIZE | changes)


def test_canvases_and_token_counts_survive_saving(tmp_path):
    UniMedConfig(**FULL_SIZE, pixel_shuffle=2).save_pretrained(tmp_path / "config")
    tiled.processor().save_pretrained(tmp_path / "processor")
    config = UniMedConfig.from_pretrained(tmp_path / "config")
    assert config.grids([(672, 336), (500, 500)]) == [(2, 1), (2, 2)]
    assert config.tokens_per_view == 144
    again = UniMedProcessor.from_pretrained(tmp_path / "processor")
    assert [again.tokens(shape) for shape in tiled.SHAPES.values()] == [48, 48, 80, 64, 64]


def test_tiles_are_cut_in_reading_order_and_joined_without_loss():
    canvas = torch.arange(24.0).view(1, 1, 4, 6)
    tiles = cut(canvas, (2, 3))
    assert tiles[:, 0].flatten(1).tolist() == [
        [0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19], [14, 15, 20, 21], [16, 17, 22, 23],
    ]  # fmt: skip
    several = torch.rand(3, 2, 8, 12)
    assert torch.equal(join(cut(several, (2, 3)), (2, 3)), several)
    assert torch.equal(cut(several, (2, 3))[6:12], cut(several[1:2], (2, 3)))


@pytest.mark.parametrize("grid", tiled.CANVASES, ids=str)
def test_the_first_view_is_the_square_and_the_others_join_to_the_canvas(grid):
    height, width = tiled.SHAPES[grid]
    picture = tiny.marked(tiny.picture(0, height, width), tiny.box(3, 2, 7, 5, (height, width)))
    pixels = tiled.processor().pixels([picture])
    assert pixels.shape == (1, squares(grid), 4, 32, 32)
    assert torch.equal(pixels[:, 0], tiny.processor().pixels([picture]))
    box, canvas = Letterbox(height, width, 32, grid), join(pixels[0, 1:], grid)[0]
    assert torch.equal(canvas[:3], torch.from_numpy(box.image(picture.image)).permute(2, 0, 1) / 255)
    assert torch.equal(canvas[3], torch.from_numpy(box.mask(picture.regions[0])))


def test_a_region_covers_the_same_pixels_as_its_picture_on_every_view():
    """A white rectangle and the region that marks it are one on the square and on the canvas."""
    for grid, (height, width) in tiled.SHAPES.items():
        mask = tiny.box(height // 4, width // 3, height // 2, width // 2, (height, width))
        picture = tiny.marked(Image.fromarray((mask * 255).astype(np.uint8)), mask)
        views = tiled.processor().pixels([picture])[0]
        for frame in (views[0], join(views[1:], grid)[0]):
            assert ((frame[0] > 0.5) == (frame[3] > 0.5)).float().mean() > 0.96
            assert frame[3].any()


def test_a_picture_with_fewer_tiles_is_followed_by_empty_views():
    pictures = [tiny.marked(tiny.picture(seed, *tiled.SHAPES[grid])) for seed, grid in enumerate([(2, 2), (1, 2)])]
    pixels = tiled.processor().pixels(pictures)
    assert pixels.shape == (2, 5, 3, 32, 32)
    assert torch.equal(pixels[1:, :3], tiled.processor().pixels(pictures[1:]))
    assert not pixels[1, 3:].any()


def test_every_image_of_a_text_takes_its_own_number_of_tokens():
    pictures = [tiny.picture(seed, *tiled.SHAPES[grid]) for seed, grid in enumerate([(2, 2), (1, 2), (3, 1)])]
    found = tiled.processor()(images=[pictures[:2], pictures[2:]], text=["<image> or <image>?", "<image>!"])
    image = tiny.processor().tokenizer.convert_tokens_to_ids("<image>")
    first, second = found["input_ids"]
    runs = [len(run) for run in "".join("I" if token == image else " " for token in first).split()]
    assert runs == [80, 48]
    assert second.count(image) == 64
    assert found["image_sizes"].tolist() == [[40, 33], [15, 31], [60, 15]]


def test_a_text_expanded_for_another_number_of_images_is_an_error():
    with pytest.raises(InputError, match="expected the size of each <image>, found 1 in the text and 2 sizes"):
        tiled.processor().expand("<image>?", [(20, 20), (20, 20)])


@pytest.mark.parametrize(
    ("height", "width", "grid", "frame"), [(40, 20, (2, 1), (64, 32)), (16, 96, (1, 3), (32, 96)), (90, 30, (2, 2), (64, 64))]
)
def test_masks_find_their_way_back_from_a_canvas(height, width, grid, frame):
    box, mask = Letterbox(height, width, 32, grid), tiny.box(height // 4, width // 4, height // 2, width // 2, (height, width))
    assert box.frame == frame and box.mask(mask).shape == frame
    back = box.unmask(20 * torch.from_numpy(box.mask(mask))[None] - 10)[0].numpy() >= 0
    assert (back & mask).sum() / (back | mask).sum() > 0.85
    np.testing.assert_allclose(box.points_to_image(box.points_to_frame(np.array([[3.0, 5.0]]))), [[3.0, 5.0]])
