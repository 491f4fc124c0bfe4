"""Region prompts: a marked part of an image as one vector the language model can read."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


def pool(features: Float[Tensor, "region patch width"], masks: Float[Tensor, "region size size"]) -> Float[Tensor, "region width"]:
    """The mean of each image's patch features over its region, weighted by how much of each patch the region covers.

    Coverage is by area, so a region of a single pixel still has its patch. MedPLIB (Huang et al. 2024, arXiv:2412.09278) pools
    by sampling points of a mask shrunk by nearest neighbour, where small regions vanish.
    """
    side = int(features.shape[1] ** 0.5)
    cover = adaptive_avg_pool2d(masks.unsqueeze(1), side).flatten(1)
    cover = cover / cover.sum(1, keepdim=True)
    return (cover.unsqueeze(1).to(features.dtype) @ features).squeeze(1)
