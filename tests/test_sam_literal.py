"""The port of SAM-Med2D gives what its papers' formulas give, to 1e-5, for weights read from a file in the released layout."""

import pytest
import sam_literal
import torch

from unimed.model import foundations
from unimed.model.sam_med2d import SamMed2D, SamMed2DConfig

SMALL = {
    "image_size": 96, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "window_size": 5,
    "global_attention_indexes": (1,), "output_channels": 32, "decoder_heads": 4, "decoder_mlp_dim": 64, "iou_hidden_dim": 24,
}  # fmt: skip
GOLDEN = [53133.36437355706, 8215.45225332117, 2.8814999077798724]
"""At full size: absolute sums of features, logits and overlaps by the formulas in double precision, for the weights that `drawn` draws."""


def drawn(config: SamMed2DConfig) -> dict[str, torch.Tensor]:
    """Weights by the released names, random in double precision: norms about one, the rest of a size that keeps signals alive."""
    draw = torch.Generator().manual_seed(7)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in SamMed2D(config).state_dict().items()}
    weights = {}
    for name, shape in sorted(shapes.items()):
        value = torch.randn(shape, generator=draw, dtype=torch.double)
        fans = shape[1:].numel() if len(shape) > 1 else 1
        is_norm = "norm" in name or ".neck.1" in name or ".neck.3" in name or "upscaling.1" in name or "downscaling.1" in name
        if is_norm and name.endswith("weight"):
            weights[name] = 1 + 0.2 * value
        elif "gaussian" in name or "embed" in name or "token.weight" in name or "tokens.weight" in name:
            weights[name] = value if "gaussian" in name else 0.5 * value
        else:
            weights[name] = 0.2 * value if name.endswith("bias") else value / fans**0.5
    return weights


def ported(config: SamMed2DConfig, weights: dict[str, torch.Tensor], file) -> SamMed2D:
    """The port in single precision, its weights read from a .pth of the released layout."""
    torch.save({"model": {name: value.float() for name, value in weights.items()}}, file)
    sam = SamMed2D(config)
    sam.load_state_dict(foundations.part(file, foundations.MASK, sam).tensors())
    return sam.eval()


def compare(config: SamMed2DConfig, file, images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, logits and overlap by the formulas, after the port was found to give the same to 1e-5 of their spread."""
    weights = drawn(config)
    draw = torch.Generator().manual_seed(8)
    pixels = torch.randn(images, 3, config.image_size, config.image_size, generator=draw, dtype=torch.double)
    points = [[(10.0, 20.0, 1), (70.0, 33.0, 0), (0.0, 0.0, -1)], [(12.0, 8.0, 2), (60.0, 50.0, 3)], [(3.5, 90.25, 1), (0.0, 0.0, -1)]]
    heads, size = config.decoder_heads, config.image_size
    sam = ported(config, weights, file)
    with torch.no_grad():
        seen = [
            sam_literal.encode(weights, image, config.num_attention_heads, config.window_size, tuple(config.global_attention_indexes))
            for image in pixels
        ]
        features = sam.encode(pixels.float())
        assert_close(features, torch.stack(seen))
        masks, overlaps = [], []
        for number, prompt in enumerate(points):
            sparse = torch.stack([sam_literal.point(weights, *at, size) for at in prompt])
            logits, overlap = sam_literal.decode(weights, seen[number % images], sparse, heads)
            own = torch.tensor([[at[:2] for at in prompt]]), torch.tensor([[at[2] for at in prompt]])
            found, expected = sam.decode(features[[number % images]], sam.prompt_points(*own))
            assert_close(found[0], logits)
            assert_close(expected, overlap.unsqueeze(0))
            masks.append(logits)
            overlaps.append(overlap)
    return torch.stack(seen), torch.stack(masks), torch.stack(overlaps)


def assert_close(ours: torch.Tensor, literal: torch.Tensor) -> None:
    """Single precision against double: 1e-5 of the largest value."""
    assert ours.dtype == torch.float32
    assert ours.shape == literal.shape
    assert (ours.double() - literal).abs().max() <= 1e-5 * max(1.0, literal.abs().max())


def test_a_small_one_equals_the_formulas(tmp_path):
    features, masks, overlaps = compare(SamMed2DConfig(**SMALL), tmp_path / "sam.pth", images=2)
    assert (features.shape, masks.shape, overlaps.shape) == ((2, 32, 12, 12), (3, 48, 48), (3,))
    assert min(value.std() for value in (features, masks, overlaps)) > 0.05


@pytest.mark.slow
def test_the_full_size_equals_the_formulas_and_the_golden_sums(tmp_path):
    """ViT-B at 256: windows of 14 on a grid of 16, so that windows stick out as in the released model."""
    features, masks, overlaps = compare(SamMed2DConfig(), tmp_path / "sam-med2d_b.pth", images=1)
    assert (features.shape, masks.shape, overlaps.shape) == ((1, 256, 16, 16), (3, 64, 64), (3,))
    sums = [value.abs().sum().item() for value in (features, masks, overlaps)]
    assert sums == pytest.approx(GOLDEN, rel=1e-6)
