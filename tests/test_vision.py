"""The hybrid encoder: nothing changes until a gate opens, and then detail shows that the ViT cannot see."""

import pytest
import tiny
import torch
from torch.nn.functional import adaptive_avg_pool2d

from unimed.model.vision import HybridEncoder, Projector


@pytest.fixture
def images():
    return torch.rand(2, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def fresh():
    return tiny.fresh().model.encoder


@pytest.fixture
def encoder():
    return tiny.stirred().model.encoder


def test_a_fresh_encoder_equals_the_plain_vit_to_the_last_bit(fresh, images):
    small = fresh.vision_normalise(adaptive_avg_pool2d(images, 16))
    reference = fresh.vision(small, output_hidden_states=True).hidden_states
    assert torch.equal(fresh(images), reference[-2][:, 1:])
    assert torch.equal(fresh.plain_tokens(images), reference[-2])


def test_the_configured_layer_feeds_the_projector(images):
    encoder = tiny.fresh(vision_feature_layer=-1).model.encoder
    small = encoder.vision_normalise(adaptive_avg_pool2d(images, 16))
    assert torch.equal(encoder(images), encoder.vision(small).last_hidden_state[:, 1:])


def test_an_open_gate_shows_detail_that_the_vit_cannot_see(encoder, images):
    checkerboard = torch.tensor([[0.25, -0.25], [-0.25, 0.25]]).repeat(tiny.SIZE // 2, tiny.SIZE // 2)
    grey = torch.full_like(images, 0.5)
    assert torch.equal(encoder.plain_tokens(grey), encoder.plain_tokens(grey + checkerboard))
    assert not torch.allclose(encoder(grey), encoder(grey + checkerboard), atol=1e-2)


def test_detail_stays_where_it_is(fresh, images):
    with torch.no_grad():
        fresh.fusions[1].gate.fill_(1.0)
    changed = images.clone()
    changed[:, :, 24:, 24:] += 0.2 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)
    moved = (fresh(changed) - fresh(images)).abs().amax(-1)[0].view(4, 4)
    assert moved.argmax() == 15
    assert moved[0, 0] < moved[3, 3] / 10


def test_every_tensor_of_every_fusion_learns_after_the_first_step(fresh, images):
    fresh.requires_grad_(False)
    fresh.fusions.requires_grad_(True)
    optimizer = torch.optim.AdamW(fresh.fusions.parameters(), lr=0.01)
    learning = []
    for _ in range(2):
        optimizer.zero_grad()
        (fresh(images) ** 2).mean().backward()
        learning.append({name for name, value in fresh.fusions.named_parameters() if value.grad.any()})
        optimizer.step()
    assert learning[0] == {"0.gate", "1.gate"}
    assert learning[1] == {name for name, _ in fresh.fusions.named_parameters()}


def test_frozen_towers_get_no_gradient_but_let_it_through(encoder, images):
    encoder.vision.requires_grad_(False)
    encoder.detail.requires_grad_(False)
    images.requires_grad_(True)
    (encoder(images) ** 2).mean().backward()
    assert all(value.grad is None for tower in (encoder.vision, encoder.detail) for value in tower.parameters())
    assert all(value.grad.any() for value in encoder.fusions[0].parameters())
    assert images.grad.abs().amin() > 0


def test_the_detail_tower_sees_the_image_at_its_full_size(encoder, images):
    assert [tuple(found.shape) for found in encoder.detail_maps(images)] == [(2, 8, 8, 8), (2, 12, 4, 4)]


def test_detail_maps_are_those_of_the_tower_alone(encoder, images):
    reference = encoder.detail(encoder.detail_normalise(images), output_hidden_states=True).hidden_states
    assert torch.equal(encoder.detail_maps(images)[-1], reference[-1])


@pytest.mark.parametrize(("blocks", "found"), [([1], "1"), ([2, 1], "2, 1"), ([1, 3], "1, 3"), ([0, 1], "0, 1"), ([1, 1], "1, 1")])
def test_fusions_after_blocks_that_never_run_are_an_error(blocks, found):
    with pytest.raises(ValueError, match=f"fusion_blocks .* is \\[{found}\\]"):
        HybridEncoder(tiny.config(tiny.processor().tokenizer, fusion_blocks=blocks))


def test_the_image_size_makes_both_grids_one():
    config = tiny.config(tiny.processor().tokenizer)
    assert (config.grid_size, config.detail_stride, config.image_size, config.tokens_per_view) == (4, 8, 32, 16)


def test_a_projector_writes_in_the_width_of_the_language_model():
    torch.manual_seed(0)
    projector, features = Projector(3, 5), torch.randn(2, 4, 3)
    inner = torch.nn.functional.gelu(features @ projector.fc1.weight.T + projector.fc1.bias)
    torch.testing.assert_close(projector(features), inner @ projector.fc2.weight.T + projector.fc2.bias)


def test_towers_see_colours_in_the_units_of_their_training(encoder):
    white = torch.ones(1, 3, 1, 1)
    clip = [(1 - mean) / std for mean, std in zip((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), strict=True)]
    convnext = [(1 - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    torch.testing.assert_close(encoder.vision_normalise(white).flatten(), torch.tensor(clip))
    torch.testing.assert_close(encoder.detail_normalise(white).flatten(), torch.tensor(convnext))
    own = tiny.config(tiny.processor().tokenizer, detail_image_mean=[0.25, 0.5, 0.75], detail_image_std=[0.5, 0.25, 0.125])
    other = HybridEncoder(own)
    torch.testing.assert_close(other.detail_normalise(white).flatten(), torch.tensor([1.5, 2.0, 2.0]))
    torch.testing.assert_close(other.vision_normalise(white).flatten(), torch.tensor(clip))
