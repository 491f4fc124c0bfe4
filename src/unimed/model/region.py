"""Region prompts: a marked part of an image as one vector the language model can read."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


def pool(features: Float[Tensor, "region token width"], masks: Float[Tensor, "region *view size size"]) -> Float[Tensor, "region width"]:
    """The mean of each image's token features over its region, weighted by how much of each token's square the region covers.

    Tokens stand view by view. Coverage is by area, so a region of a single pixel still has its token. MedPLIB (Huang et al. 2024,
    arXiv:2412.09278) pools by sampling points of a mask shrunk by nearest neighbour, where small regions vanish.
    """
    views = masks.shape[1:-2].numel()
    side = int((features.shape[1] / views) ** 0.5)
    cover = adaptive_avg_pool2d(masks.reshape(len(masks), views, *masks.shape[-2:]), side).flatten(1)
    cover = cover / cover.sum(1, keepdim=True)
    return (cover.unsqueeze(1).to(features.dtype) @ features).squeeze(1)
