"""SAM-Med2D against what others released: the weights' names and counts, and transformers' SAM on the same weights."""

import copy
import re

import pytest
import torch
from torch import nn
from transformers.models.sam.configuration_sam import SamConfig
from transformers.models.sam.modeling_sam import SamModel

from unimed.model.sam_med2d import SamMed2D, SamMed2DConfig

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
RENAMES = [
    (r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    (r"image_encoder\.patch_embed\.proj", "vision_encoder.patch_embed.projection"),
    (r"image_encoder\.blocks", "vision_encoder.layers"),
    (r"image_encoder\.", "vision_encoder."),
    (r"neck\.0", "neck.conv1"),
    (r"neck\.1", "neck.layer_norm1"),
    (r"neck\.2", "neck.conv2"),
    (r"neck\.3", "neck.layer_norm2"),
    (r"(layers\.\d+)\.norm(\d)", r"\1.layer_norm\2"),
    (r"norm_final_attn", "layer_norm_final_attn"),
    (r"point_embeddings", "point_embed"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"((?:mlps\.\d|head)\.)layers\.0", r"\1proj_in"),
    (r"((?:mlps\.\d|head)\.)layers\.2", r"\1proj_out"),
    (r"((?:mlps\.\d|head)\.)layers\.1", r"\1layers.0"),
]


def parameters(module):
    return sum(tensor.numel() for tensor in module.parameters())


def test_the_full_size_has_the_released_weights_counts():
    with torch.device("meta"):
        sam = SamMed2D(SamMed2DConfig())
    adapter = 2 * 768 * 192 + 9 * 768**2 + 16 * 768**2 + 2 * 768
    attention = 768 * 2304 + 2304 + 768 * 768 + 768
    block = 4 * 768 + attention + 2 * 768 * 3072 + 3072 + 768 + adapter
    distances = 8 * 2 * 27 * 64 + 4 * 2 * 31 * 64
    ends = 3 * 16 * 16 * 768 + 768 + 16 * 16 * 768 + 768 * 256 + 9 * 256 * 256 + 4 * 256
    assert [parameters(block.Adapter) for block in sam.image_encoder.blocks] == [adapter] * 12
    assert 12 * adapter == pytest.approx(180.5e6, abs=0.05e6)
    assert parameters(sam.image_encoder) == 12 * block + distances + ends == pytest.approx(267.2e6, abs=0.05e6)
    assert parameters(sam.prompt_encoder) == 6 * 256 + (16 + 4) + 8 + (256 + 16) + 32 + (4096 + 256) == 6220
    assert parameters(sam.mask_decoder) == 4_058_340


def test_the_full_size_takes_256_pixels_and_gives_64():
    with torch.device("meta"):
        sam = SamMed2D(SamMed2DConfig())
        features = sam.encode(torch.empty(2, 3, 256, 256))
        logits, overlap = sam.decode(features[torch.empty(5, dtype=torch.long)], torch.empty(5, 1, 256))
    assert (features.shape, logits.shape, overlap.shape) == ((2, 256, 16, 16), (5, 64, 64), (5,))


def test_names_are_those_of_the_released_weights():
    with torch.device("meta"):
        names = SamMed2D(SamMed2DConfig()).state_dict().keys()
    both = (".weight", ".bias")
    block = [part + end for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2", "Adapter.norm") for end in both]
    block += [f"Adapter.{part}.weight" for part in ("channel.0", "channel.2", "spatial.0", "spatial.2")]
    block += ["attn.rel_pos_h", "attn.rel_pos_w"]
    encoder = [f"blocks.{index}.{name}" for index in range(12) for name in block]
    encoder += ["pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    encoder += ["neck.0.weight", "neck.1.weight", "neck.1.bias", "neck.2.weight", "neck.3.weight", "neck.3.bias"]
    prompt = ["pe_layer.positional_encoding_gaussian_matrix", "not_a_point_embed.weight", "no_mask_embed.weight"]
    prompt += [f"point_embeddings.{index}.weight" for index in range(4)]
    prompt += [f"mask_downscaling.{index}{end}" for index in (0, 1, 3, 4, 6) for end in both]
    looks = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    two_way = [f"{look}.{part}_proj" for look in looks for part in ("q", "k", "v", "out")]
    two_way += ["norm1", "norm2", "norm3", "norm4", "mlp.lin1", "mlp.lin2"]
    decoder = [f"transformer.layers.{index}.{part}" for index in range(2) for part in two_way] + ["transformer.norm_final_attn"]
    decoder += [f"transformer.final_attn_token_to_image.{part}_proj" for part in ("q", "k", "v", "out")]
    decoder += [f"output_hypernetworks_mlps.{index}.layers.{layer}" for index in range(4) for layer in range(3)]
    decoder += [f"iou_prediction_head.layers.{layer}" for layer in range(3)] + [f"output_upscaling.{index}" for index in (0, 1, 3)]
    decoder = [name + end for name in decoder for end in both] + ["iou_token.weight", "mask_tokens.weight"]
    expected = {"image_encoder": encoder, "prompt_encoder": prompt, "mask_decoder": decoder}
    assert set(names) == {f"{part}.{name}" for part, inner in expected.items() for name in inner}


def reference_of(sam):
    """Transformers' SAM with the weights of ours; it has no adapters."""
    vision = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 96, "patch_size": 8, "window_size": 5}
    vision |= {"global_attn_indexes": [1], "output_channels": 32, "num_pos_feats": 16}
    decoder = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 24, "layer_norm_eps": 1e-5}
    prompt = {"hidden_size": 32, "image_size": 96, "patch_size": 8}
    reference = SamModel(SamConfig(vision_config=vision, mask_decoder_config=decoder, prompt_encoder_config=prompt)).eval()
    renamed = {}
    for name, tensor in sam.state_dict().items():
        for old, new in RENAMES:
            name = re.sub(old, new, name)
        renamed[name] = tensor
    renamed = {name: tensor for name, tensor in renamed.items() if "Adapter" not in name}
    renamed["prompt_encoder.shared_embedding.positional_embedding"] = renamed["shared_image_embedding.positional_embedding"]
    reference.load_state_dict(renamed)
    return reference


@pytest.fixture(scope="module")
def sam():
    """A tiny model whose adapters add nothing."""
    torch.manual_seed(0)
    sam = SamMed2D(SamMed2DConfig(**TINY)).eval()
    for block in sam.image_encoder.blocks:
        nn.init.zeros_(block.Adapter.norm.weight)
    return sam


def test_without_adapters_it_is_transformers_sam_on_the_same_weights(sam):
    reference, images = reference_of(sam), torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    points = torch.tensor([[[20.0, 30.0], [70.0, 11.0]], [[5.0, 90.0], [40.0, 41.0]], [[1.0, 2.0], [3.0, 4.0]]])
    labels = torch.tensor([[1, 0], [1, -1], [0, 0]])
    with torch.no_grad():
        theirs = reference(pixel_values=images, input_points=points[:, None], input_labels=labels[:, None], multimask_output=False)
        padding = torch.zeros(3, 1, 2), torch.full((3, 1), -1)
        sparse = sam.prompt_points(torch.cat([points, padding[0]], 1), torch.cat([labels, padding[1]], 1))
        logits, overlap = sam.decode(sam.encode(images), sparse)
    assert torch.allclose(logits, theirs.pred_masks[:, 0, 0], atol=1e-4)
    assert torch.allclose(overlap, theirs.iou_scores[:, 0, 0], atol=1e-4)


def test_the_faintest_of_images_is_normalised_as_in_transformers_sam(sam):
    faint, images = copy.deepcopy(sam), torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for value in (faint.image_encoder.pos_embed, *faint.image_encoder.patch_embed.parameters()):
            value.mul_(1e-3)
        theirs = reference_of(faint).get_image_embeddings(images)
        assert torch.allclose(faint.encode(images), theirs, atol=1e-4)


def test_a_box_is_two_labelled_corners_as_in_transformers_sam(sam):
    box = torch.tensor([[[10.0, 20.0, 60.0, 50.0]]])
    with torch.no_grad():
        theirs, _ = reference_of(sam).prompt_encoder(None, None, box, None)
        ours = sam.prompt_points(box.view(1, 2, 2), torch.tensor([[2, 3]]))
    assert torch.allclose(ours, theirs[:, 0], atol=1e-5)
