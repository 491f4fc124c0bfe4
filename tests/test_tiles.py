"""The encoder on canvases: every tile sees what lies around it, and company, padding and order change nothing."""

import pytest
import tiled
import tiny
import torch
from torch.nn.functional import adaptive_avg_pool2d, gelu, layer_norm

from unimed.model.canvas import join, squares
from unimed.model.vision import Projector

CLOSE = {"atol": 1e-5, "rtol": 0}


def shown(*grids):
    """Pictures laid on these grids as the encoder takes them: squares, tiles, grids."""
    pixels = tiled.processor().pixels([tiny.marked(tiny.picture(seed, *tiled.SHAPES[grid])) for seed, grid in enumerate(grids)])
    return pixels[:, 0], pixels[:, 1:], list(grids)


@pytest.fixture(scope="module")
def encoder():
    return tiled.stirred().model.encoder


def literally(encoder, square, maps):
    """One view through the ViT, patch by patch of detail: the fusion written out."""
    small = encoder.vision_normalise(adaptive_avg_pool2d(square[None], 16))
    tokens = encoder.vision.pre_layrnorm(encoder.vision.embeddings(small))
    for number, block in enumerate(encoder.vision.encoder.layers[: encoder.last_block], 1):
        tokens = block(tokens, attention_mask=None)
        if number in encoder.fusion_blocks:
            at = encoder.fusion_blocks.index(number)
            fusion, detail = encoder.fusions[at], maps[at]
            step = detail.shape[-1] // 4
            cells = [detail[:, r * step : (r + 1) * step, c * step : (c + 1) * step].mean((1, 2)) for r in range(4) for c in range(4)]
            both = torch.cat([tokens[0], torch.stack([torch.stack(cells).mean(0), *cells])], 1)
            normed = layer_norm(both, both.shape[1:], fusion.norm.weight, fusion.norm.bias)
            inner = gelu(normed @ fusion.fc1.weight.T + fusion.fc1.bias)
            tokens = tokens + fusion.gate.tanh() * (inner @ fusion.fc2.weight.T + fusion.fc2.bias)
    return tokens[0, 1:]


def detail_of(encoder, pixels):
    """What transformers' own ConvNeXt finds after each stage, channel x rows x columns."""
    states = encoder.detail(encoder.detail_normalise(pixels[None]), output_hidden_states=True).hidden_states
    return [state[0] for state in states[1:]]


@torch.no_grad()
@pytest.mark.parametrize("grid", tiled.CANVASES, ids=str)
@pytest.mark.parametrize("source", ["slice", "whole"])
@pytest.mark.parametrize("fused", ["all", "last"])
def test_every_tile_is_fused_with_its_window_of_one_look_at_the_canvas(grid, source, fused):
    encoder = tiled.stirred(tile_detail=source, fused_stages=fused).model.encoder
    square, tiles, grids = shown(grid)
    found = encoder(square, tiles, grids)
    maps = detail_of(encoder, join(tiles[0], grid)[0])[0 if fused == "all" else 1 :]
    expected = [literally(encoder, square[0], detail_of(encoder, square[0])[0 if fused == "all" else 1 :])]
    for number, tile in enumerate(tiles[0]):
        row, column = divmod(number, grid[1])
        own = []
        for map_ in maps:
            side = map_.shape[-2] // grid[0]
            window = map_[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            whole = map_.unflatten(2, (side, grid[1])).unflatten(1, (side, grid[0])).mean((2, 4))
            own.append(window if source == "slice" else whole)
        expected.append(literally(encoder, tile, own))
    torch.testing.assert_close(found, torch.stack(expected), **CLOSE)


@torch.no_grad()
def test_the_detail_tower_looks_once_at_every_canvas_and_once_at_the_squares(encoder):
    looked = []
    hook = encoder.detail.embeddings.register_forward_pre_hook(lambda _, args: looked.append(tuple(args[0].shape)))
    encoder(*shown((2, 2), (1, 2), (2, 2), (3, 1)))
    hook.remove()
    assert sorted(looked) == [(1, 3, 32, 64), (1, 3, 96, 32), (2, 3, 64, 64), (4, 3, 32, 32)]


@torch.no_grad()
@pytest.mark.parametrize("source", ["slice", "whole"])
def test_images_of_all_shapes_together_give_what_they_give_alone(source):
    encoder = tiled.stirred(tile_detail=source).model.encoder
    square, tiles, grids = shown((1, 3), (2, 2), (1, 2), (2, 2), (2, 1), (3, 1))
    together = encoder(square, tiles, grids).split([squares(grid) for grid in grids])
    for number, found in enumerate(together):
        alone = encoder(square[number : number + 1], tiles[number : number + 1, : squares(grids[number]) - 1], grids[number : number + 1])
        torch.testing.assert_close(found, alone, **CLOSE)


@torch.no_grad()
def test_what_lies_in_padding_is_never_seen(encoder):
    square, tiles, grids = shown((2, 2), (1, 2))
    dirty = tiles.clone()
    dirty[1, 2:] = float("nan")
    assert torch.equal(encoder(square, dirty, grids), encoder(square, tiles, grids))


@torch.no_grad()
def test_a_fresh_encoder_sees_each_view_as_the_plain_vit_does_to_the_last_bit():
    encoder = tiny.fresh(canvases=tiled.CANVASES).model.encoder
    square, tiles, grids = shown((2, 2), (3, 1))
    # In one pass, because another batch adds numbers up in another order.
    plain = encoder.plain_tokens(torch.cat([square, tiles[0, :4], tiles[1, :3]]))[:, 1:]
    assert torch.equal(encoder(square, tiles, grids), plain[[0, 2, 3, 4, 5, 1, 6, 7, 8]])


@torch.no_grad()
def test_a_tile_knows_what_lies_just_across_its_border(encoder):
    square, tiles, grids = shown((1, 2))
    changed = tiles.clone()
    changed[0, 1, :, :, :4] = 1 - changed[0, 1, :, :, :4]
    before, after = (encoder(square, seen, grids) for seen in (tiles, changed))
    assert torch.equal(before[0], after[0])
    moved = (before[1] - after[1]).abs().amax(-1).view(4, 4).amax(0)
    assert moved[3] > 1e-3 and moved[3] > moved[0]
    blind = tiled.stirred(fused_stages="none").model.encoder
    assert torch.equal(blind(square, tiles, grids)[1], blind(square, changed, grids)[1])


@torch.no_grad()
def test_without_fusions_the_detail_tower_does_not_even_run():
    encoder = tiled.stirred(fused_stages="none").model.encoder
    square, tiles, grids = shown((2, 1))
    encoder.detail.register_forward_pre_hook(lambda *_: pytest.fail("the detail tower ran"))
    encoder.detail.embeddings.register_forward_pre_hook(lambda *_: pytest.fail("the detail tower ran"))
    assert len(encoder.fusions) == 0
    for found, view in zip(encoder(square, tiles, grids), torch.cat([square, tiles[0]]), strict=True):
        torch.testing.assert_close(found, encoder.plain_tokens(view[None])[0, 1:], **CLOSE)


def test_the_last_stage_is_fused_after_the_last_block_and_nothing_else_is():
    encoder = tiled.stirred(fused_stages="last").model.encoder
    assert encoder.fusion_blocks == (2,)
    assert [fusion.norm.normalized_shape for fusion in encoder.fusions] == [(16 + 12,)]


def test_gradients_reach_the_fusions_from_tiles_through_frozen_towers(encoder):
    encoder.requires_grad_(False)
    encoder.fusions.requires_grad_(True)
    square, tiles, grids = shown((2, 1), (1, 3))
    tiles.requires_grad_(True)
    features = encoder(square, tiles, grids)
    (features[1:3] ** 2).mean().backward()
    assert all(value.grad.any() for value in encoder.fusions[0].parameters())
    assert tiles.grad[0, :2].abs().amin() > 0 and not tiles.grad[0, 2:].any() and not tiles.grad[1].any()
    encoder.zero_grad()


@torch.no_grad()
def test_shuffled_patches_are_read_as_squares_of_four():
    torch.manual_seed(0)
    projector, features = Projector(3, 5, shuffle=2), torch.randn(2, 16, 3)
    quads = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    rows = torch.stack([features[:, quad].flatten(1) for quad in quads], 1)
    expected = gelu(rows @ projector.fc1.weight.T + projector.fc1.bias) @ projector.fc2.weight.T + projector.fc2.bias
    torch.testing.assert_close(projector(features), expected)
