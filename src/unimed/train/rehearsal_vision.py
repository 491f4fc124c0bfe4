"""What the rehearsal's vision towers are shown before stage 1, in place of internet pre-training.

ViT and detail tower learn to name what lies in each cell of their grid, the ViT also which cell it is; the mask model learns, like
SAM-Med2D, to segment what a box or a point marks. None of them ever sees a question, an answer or a class name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits, cross_entropy

from unimed.data import phantoms
from unimed.data.phantoms import CLASSES, LESION, MODALITIES, Scene
from unimed.model.letterbox import Letterbox
from unimed.model.sam_med2d import SamMed2D
from unimed.model.vision import HybridEncoder, Normalise
from unimed.origins import StandIn
from unimed.train import losses
from unimed.train.optimise import minimise

SLICES = 4


@dataclass(frozen=True)
class Phantoms:
    """Scenes as tensors in the model's square frame."""

    scenes: list[Scene]
    images: Float[Tensor, "scene 3 size size"]
    masks: Bool[Tensor, "scene class size size"]

    def cells(self, index: Tensor, side: int) -> Float[Tensor, "scene label side side"]:
        """Share of each grid cell that every class covers, and after the classes the share that is calcified."""
        return with_calcified(adaptive_avg_pool2d(self.masks[index].float(), side), [self.scenes[i] for i in index.tolist()])


def show(settings: StandIn, size: int, seed: int) -> Phantoms:
    """The phantoms of the foundation: numbered apart from every data set's, so that no patient is shared."""
    scenes = list(phantoms.scenes(settings.cases, SLICES, seed=seed + 1_000_003))
    images = torch.zeros(len(scenes), 3, size, size)
    masks = torch.zeros(len(scenes), len(CLASSES), size, size, dtype=torch.bool)
    for row, scene in enumerate(scenes):
        height, width = scene.image.shape
        box = Letterbox(height, width, size)
        images[row] = torch.from_numpy(box.image(np.repeat(scene.image[..., None], 3, 2))).permute(2, 0, 1) / 255
        masks[row] = framed(scene, box)
    return Phantoms(scenes, images, masks)


def framed(scene: Scene, box: Letterbox) -> Bool[Tensor, "class rows columns"]:
    """Where in a frame the structures of each class lie."""
    masks = torch.zeros(len(CLASSES), *box.frame, dtype=torch.bool)
    for number, name in enumerate(CLASSES):
        for structure in scene.named(name):
            masks[number] |= torch.from_numpy(box.mask(structure.mask)) >= 0.5
    return masks


def with_calcified(cover: Float[Tensor, "scene class rows columns"], scenes: Sequence[Scene]) -> Float[Tensor, "scene label rows columns"]:
    """The share of every cell that each class covers and, as one more, the share that is calcified."""
    calcified = torch.tensor([scene.calcified for scene in scenes])[:, None, None]
    return torch.cat([cover, (cover[:, CLASSES.index(LESION)] * calcified).unsqueeze(1)], 1)


def train_encoder(encoder: HybridEncoder, shown: Phantoms, settings: StandIn, seed: int) -> list[float]:
    """Teach both towers, each on its own, what lies in every cell; every token of the ViT also the modality and where its cell is.

    The heads are thrown away.
    """
    optimisation, draw = settings.vision, torch.Generator().manual_seed(seed)
    vit, conv = encoder.vision.config, encoder.detail.config
    labels, side = len(CLASSES) + 1, vit.image_size // vit.patch_size
    heads = nn.ModuleList(nn.Linear(vit.hidden_size, size) for size in (labels, len(MODALITIES), side**2))
    heads.extend(nn.Conv2d(width, labels, 1) for width in conv.hidden_sizes)
    modality = torch.tensor([list(MODALITIES).index(scene.prefix) for scene in shown.scenes])

    def loss(step: int) -> Tensor:
        index = torch.randint(len(shown.scenes), (optimisation.batch_size,), generator=draw)
        images, target = shown.images[index], shown.cells(index, side)
        tokens = encoder.plain_tokens(images)
        seen = heads[0](tokens[:, 1:]).transpose(1, 2).unflatten(2, (side, side))
        where = heads[2](tokens[:, 1:]).flatten(0, 1)
        kind = heads[1](tokens).flatten(0, 1)
        total = 10 * binary_cross_entropy_with_logits(seen[:, :-1], target[:, :-1])
        total = total + cross_entropy(kind, modality[index].repeat_interleave(tokens.shape[1]))
        total = total + cross_entropy(where, torch.arange(side**2).repeat(len(index)))
        for map_, head in zip(encoder.detail_maps(images), heads[3:], strict=True):
            total = total + 10 * binary_cross_entropy_with_logits(adaptive_avg_pool2d(head(map_), side), target)
        return total

    return minimise([*encoder.vision.parameters(), *encoder.detail.parameters(), *heads.parameters()], loss, optimisation, "towers")


def train_masks(sam: SamMed2D, normalise: Normalise, shown: Phantoms, settings: StandIn, seed: int) -> list[float]:
    """Teach the mask model to segment what a box or a point marks; Dice and pixel loss, and the overlap it then claims."""
    optimisation, draw = settings.masks, torch.Generator().manual_seed(seed)
    present = shown.masks.flatten(2).any(-1).nonzero()
    head = nn.Conv2d(sam.image_encoder.neck[0].out_channels, len(CLASSES), 1)

    def loss(step: int) -> Tensor:
        index = present[torch.randint(len(present), (optimisation.batch_size,), generator=draw)]
        target = shown.masks[index[:, 0], index[:, 1]].float()
        points, labels = _prompts(target, draw)
        features = sam.encode(normalise(shown.images[index[:, 0]]))
        logits, claimed = sam.decode(features, sam.prompt_points(points, labels))
        low = adaptive_avg_pool2d(target, logits.shape[-1])
        overlap = 1 - losses.dice(logits, low)
        cells = adaptive_avg_pool2d(shown.masks[index[:, 0]].float(), features.shape[-1])
        named = 5 * binary_cross_entropy_with_logits(head(features), cells)
        return (losses.pixel(logits, low) + 1 - overlap + (claimed - overlap.detach()) ** 2).mean() + named

    return minimise([*sam.parameters(), *head.parameters()], loss, optimisation, "masks")


def _prompts(target: Float[Tensor, "mask size size"], draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """A box for one half of the masks and a point inside for the other, as points with SAM's labels."""
    points, labels = torch.zeros(len(target), 2, 2), torch.zeros(len(target), 2, dtype=torch.long)
    for row, mask in enumerate(target):
        inside = mask.nonzero().flip(1).float()
        if row % 2:
            points[row], labels[row] = torch.stack([inside.amin(0), inside.amax(0)]), torch.tensor([2, 3])
        else:
            points[row, 0], labels[row] = inside[torch.randint(len(inside), (), generator=draw)], torch.tensor([1, -1])
    return points, labels
