"""SAM-Med2D: equal to literal loops, and to itself in any batch, order and window."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional

from unimed.model.configuration import UniMedConfig
from unimed.model.sam_med2d import Adapter, GridAttention, SamMed2D, SamMed2DConfig, join, split

TINY = {
    "image_size": 96,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "window_size": 5,
    "global_attention_indexes": (1,),
    "output_channels": 32,
    "decoder_heads": 4,
    "decoder_mlp_dim": 64,
    "iou_hidden_dim": 24,
}


@pytest.fixture(scope="module")
def sam():
    """A tiny model with every tensor moved at random, so that nothing is hidden by a zero or a one."""
    torch.manual_seed(0)
    model = SamMed2D(SamMed2DConfig(**TINY)).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor), alpha=0.1)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def prompts():
    return torch.randn(4, 2, 32, generator=torch.Generator().manual_seed(2))


def test_relative_positions_equal_a_literal_loop():
    torch.manual_seed(0)
    attention, side, heads, depth = GridAttention(8, heads=2, side=3), 3, 2, 4
    nn.init.normal_(attention.rel_pos_h)
    nn.init.normal_(attention.rel_pos_w)
    x = torch.randn(1, side, side, 8)
    cells = [(row, column) for row in range(side) for column in range(side)]
    expected = torch.empty(1, side, side, 8)
    with torch.no_grad():
        parts = {cell: attention.qkv(x[0][cell]).view(3, heads, depth) for cell in cells}
        for here in cells:
            taken = []
            for head in range(heads):
                query = parts[here][0, head]
                scores = []
                for there in cells:
                    down, across = here[0] - there[0], here[1] - there[1]
                    score = query @ parts[there][1, head] / depth**0.5
                    scores.append(score + query @ attention.rel_pos_h[down + 2] + query @ attention.rel_pos_w[across + 2])
                shares = torch.stack(scores).softmax(0)
                taken.append(sum(share * parts[there][2, head] for share, there in zip(shares, cells, strict=True)))
            expected[0][here] = attention.proj(torch.cat(taken))
        assert torch.allclose(attention(x), expected, atol=1e-5)


def test_the_adapter_equals_literal_loops():
    torch.manual_seed(0)
    adapter, x = Adapter(4, hidden=2).double(), torch.randn(1, 4, 6, 4, dtype=torch.double)
    squeeze, excite, down, up = (layer.weight for layer in (adapter.channel[0], adapter.channel[2], adapter.spatial[0], adapter.spatial[2]))
    with torch.no_grad():
        gate = torch.sigmoid(excite @ (squeeze @ x[0].mean(dim=(0, 1))).relu())
        half = torch.zeros(2, 3, 4, dtype=torch.double)
        full = torch.zeros(4, 6, 4, dtype=torch.double)
        for row, column, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(3), torch.arange(3)).tolist():
            y, z = 2 * row + i - 1, 2 * column + j - 1
            if 0 <= y < 4 and 0 <= z < 6:
                half[row, column] += down[:, :, i, j] @ (x[0, y, z] * gate)
        for row, column, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4), torch.arange(4)).tolist():
            y, z = 2 * row + i - 1, 2 * column + j - 1
            if 0 <= y < 4 and 0 <= z < 6:
                full[y, z] += half[row, column].relu() @ up[:, :, i, j]
        expected = functional.layer_norm(x[0] + full.relu(), (4,))
        assert torch.allclose(adapter(x)[0], expected)


def test_windows_are_cut_and_put_back():
    x = torch.arange(2 * 5 * 5 * 3.0).view(2, 5, 5, 3)
    squares = split(x, 2)
    assert squares.shape == (2 * 9, 2, 2, 3)
    assert torch.equal(squares[1], x[0, 0:2, 2:4])
    assert torch.equal(squares[8], functional.pad(x[0, 4:, 4:], (0, 0, 0, 1, 0, 1)))
    assert torch.equal(join(squares, 5), x)


@pytest.mark.parametrize("window", [12, 14])
def test_a_window_that_holds_the_grid_is_global_attention(window, images):
    torch.manual_seed(0)
    everywhere = SamMed2D(SamMed2DConfig(**TINY | {"window_size": 0})).eval()
    windowed = SamMed2D(SamMed2DConfig(**TINY | {"window_size": window})).eval()
    windowed.load_state_dict(everywhere.state_dict())
    with torch.no_grad():
        assert torch.equal(windowed.encode(images), everywhere.encode(images))


def test_a_mask_has_four_times_the_grid_s_resolution(sam, images, prompts):
    with torch.no_grad():
        features = sam.encode(images)
        logits, overlap = sam.decode(features[[0, 1, 1, 2]], prompts)
    assert (features.shape, logits.shape, overlap.shape) == ((3, 32, 12, 12), (4, 48, 48), (4,))


def test_a_batch_equals_its_members_one_by_one(sam, images, prompts):
    owner = [2, 0, 0, 1]
    with torch.no_grad():
        features = sam.encode(images)
        logits, overlap = sam.decode(features[owner], prompts)
        for index, image in enumerate(owner):
            alone = sam.encode(images[image : image + 1])
            one_logits, one_overlap = sam.decode(alone, prompts[index : index + 1])
            assert torch.allclose(one_logits[0], logits[index], atol=1e-4)
            assert torch.allclose(one_overlap[0], overlap[index], atol=1e-4)


def test_prompts_in_another_order_give_masks_in_that_order(sam, images, prompts):
    order = [3, 1, 0, 2]
    with torch.no_grad():
        features = sam.encode(images)[[0, 1, 2, 1]]
        logits, overlap = sam.decode(features, prompts)
        moved_logits, moved_overlap = sam.decode(features[order], prompts[order])
    assert torch.allclose(moved_logits, logits[order], atol=1e-5)
    assert torch.allclose(moved_overlap, overlap[order], atol=1e-5)


def test_the_mask_depends_on_prompt_and_image(sam, images, prompts):
    with torch.no_grad():
        features = sam.encode(images)
        logits, _ = sam.decode(features[[0, 0, 1]], prompts[[0, 1, 0], :1])
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert (logits[0] - logits[2]).abs().max() > 1e-3


def test_no_image_and_no_prompt_give_no_mask(sam, images, prompts):
    with torch.no_grad():
        features = sam.encode(images[:0])
        logits, overlap = sam.decode(features, prompts[:0])
    assert (features.shape, logits.shape, overlap.shape) == ((0, 32, 12, 12), (0, 48, 48), (0,))


def test_a_padding_point_carries_no_place(sam):
    labels = torch.tensor([[1, -1]])
    with torch.no_grad():
        here = sam.prompt_points(torch.tensor([[[10.0, 20.0], [0.0, 0.0]]]), labels)
        there = sam.prompt_points(torch.tensor([[[10.0, 20.0], [50.0, 90.0]]]), labels)
        elsewhere = sam.prompt_points(torch.tensor([[[11.0, 20.0], [0.0, 0.0]]]), labels)
    assert torch.equal(here, there)
    assert not torch.allclose(here[:, 0], elsewhere[:, 0])


def test_gradients_reach_all_of_the_decoder_but_the_other_masks(images, prompts):
    torch.manual_seed(0)
    sam = SamMed2D(SamMed2DConfig(**TINY))
    sparse = prompts[:3].clone().requires_grad_()
    logits, overlap = sam.decode(sam.encode(images), sparse)
    (logits.square().mean() + overlap.square().mean()).backward()
    # What all keys share cancels in the softmax, so only rounding decides whether a key's bias gets a gradient of exactly zero.
    counted = {name: tensor.grad for name, tensor in sam.named_parameters() if not name.endswith("k_proj.bias")}
    silent = {name for name, gradient in counted.items() if gradient is None or not gradient.any()}
    other_masks = tuple(f"mask_decoder.output_hypernetworks_mlps.{index}." for index in (1, 2, 3))
    prompting = tuple(f"prompt_encoder.{part}." for part in ("point_embeddings", "not_a_point_embed", "mask_downscaling"))
    assert silent == {name for name in counted if name.startswith(other_masks + prompting)}
    assert sparse.grad is not None
    assert sparse.grad.any()


def test_a_config_survives_the_way_through_a_file_inside_another(tmp_path):
    written = SamMed2DConfig(**TINY)
    UniMedConfig(mask_config=written).save_pretrained(tmp_path)
    read = UniMedConfig.from_pretrained(tmp_path).mask_config
    assert (read.hidden_size, read.global_attention_indexes, read.image_mean) == (48, (1,), written.image_mean)
    assert read.to_dict() == written.to_dict()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"patch_size": 32}, "image_size by twice the patch_size .* found 96 and 64"),
        ({"num_attention_heads": 5}, "hidden_size by num_attention_heads, found 48 and 5"),
        ({"output_channels": 36}, "output_channels by 8 .* found 36 and 8"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, sentence):
    with pytest.raises(StrictDataclassError, match=sentence):
        SamMed2DConfig(**TINY | change)
