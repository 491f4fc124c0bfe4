"""From a `<SEG>` in the text to a mask: the token's own rows, a projection of its state, and the SAM-Med2D mask decoder."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unimed.model.configuration import UniMedConfig
from unimed.model.sam_med2d import SamMed2D
from unimed.model.views import ends
from unimed.model.vision import Normalise


class Grounding(nn.Module):
    """What a language model needs to point: rows for one new token, `text_hidden_fcs` and a mask model.

    The state at `<SEG>` itself is read. LISA (Lai et al. 2023, arXiv:2308.00692) and MedPLIB read the state that predicts it,
    which then has to serve two masters, the next word and the mask.
    """

    def __init__(self, config: UniMedConfig):
        super().__init__()
        width, channels = config.text_config.hidden_size, config.mask_config.output_channels
        self.seg_input = nn.Parameter(torch.zeros(width))
        self.seg_output = nn.Parameter(torch.zeros(width))
        self.text_hidden_fcs = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, channels))
        self.normalise = Normalise(tuple(config.mask_config.image_mean), tuple(config.mask_config.image_std))
        self.sam = SamMed2D(config.mask_config)

    def forward(
        self,
        images: Float[Tensor, "image 3 size size"],
        states: Float[Tensor, "mask width"],
        image_index: Int[Tensor, " mask"],
    ) -> Float[Tensor, "mask low low"]:
        """Low-resolution mask logits for every state, all in one decoder call. Every image is encoded, once."""
        # The language model, the projection and the mask model may each have come in a type of their own.
        kind = self.sam.prompt_encoder.no_mask_embed.weight.dtype
        features = self.sam.encode(self.normalise(images.to(kind)))
        sparse = self.text_hidden_fcs(states.to(next(self.text_hidden_fcs.parameters()).dtype)).unsqueeze(1)
        return self.sam.decode(features[image_index], sparse.to(kind))[0]


def image_of_each(
    tokens: Bool[Tensor, "batch seq"], image_tokens: Bool[Tensor, "batch seq"], tokens_of: Sequence[int]
) -> Int[Tensor, " token"]:
    """For each marked token the number, over the whole batch, of the last image before it in its row; `tokens_of` each image.

    Raises ValueError for a token with no image before it.
    """
    if bool((image_tokens.cumsum(1)[tokens] == 0).any()):
        raise ValueError("expected an image before every <SEG>, found a <SEG> in a text without one")
    so_far = image_tokens.flatten().cumsum(0).view_as(image_tokens)
    return torch.searchsorted(ends(tokens_of, tokens.device), so_far[tokens])
