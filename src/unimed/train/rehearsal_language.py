"""What the rehearsal's language model is shown before stage 1, in place of internet pre-training.

It reads soft prompts: where an image will stand, each position holds the sum of the embeddings of the words that are true of
that cell. A language model of full size can read such mixtures; a small one has to be shown. It sees captions and questions
about phantoms of its own and requests to copy words between tags; no multiple choice, no `<SEG>`, and no pixel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy
from torch.nn.utils.rnn import pad_sequence

from unimed.data import phantom_text
from unimed.data.phantoms import CLASSES, LESION, Scene
from unimed.data.records import REGION
from unimed.model.canvas import NO_TILES, cut
from unimed.model.configuration import UniMedConfig
from unimed.model.letterbox import Letterbox
from unimed.model.processor import UniMedProcessor
from unimed.model.region import pool
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.origins import StandIn
from unimed.train.batch import IGNORED, labelled
from unimed.train.optimise import minimise
from unimed.train.rehearsal_vision import Phantoms, framed, with_calcified

Turn = tuple[str, str, int | None]
"""Question, answer, and the number of the class whose region the question marks."""

WORDS = (*CLASSES, *phantom_text.SIDES, *phantom_text.QUALITIES.values(), *phantom_text.MODALITIES.values())
"""What can be true of a cell."""


def corpus(scenes: Sequence[Scene], seed: int, repeats: int = 3) -> list[list[Turn]]:
    """For every scene its caption, closed questions, lists and copies drawn `repeats` times, and each class as a region."""
    conversations = []
    for number, scene in enumerate(scenes):
        rng = np.random.default_rng([seed, number, 2])
        turns: list[Turn] = [("Describe this image briefly.", phantom_text.caption(scene), None)]
        drawn = [phantom_text.closed_questions(scene, rng) for _ in range(repeats)]
        turns += [turn for _ in range(repeats) for turn in (*_listed(scene, rng), _marked_up(rng))]
        turns += dict.fromkeys((question, answer, None) for questions in drawn for _, question, answer in questions)
        for label, name in enumerate(CLASSES):
            if scene.named(name):
                turns.append((f"Which structure lies in {REGION}?", f"The marked region shows the {name}.", label))
        conversations.append(turns)
    return conversations


def _listed(scene: Scene, rng: np.random.Generator) -> Iterator[Turn]:
    """Word by word what is true of each class and each modality: the densest way to learn to look things up."""
    names, kinds = rng.permutation(CLASSES), rng.permutation(list(phantom_text.MODALITIES.values()))
    yield f"Where are {', '.join(names)}?", f"{phantom_text.inventory(scene, names)}.", None
    found = ", ".join(f"{kind} {'yes' if kind == scene.modality else 'no'}" for kind in kinds)
    yield f"Is it {', '.join(kinds)}?", f"{found}.", None


def _marked_up(rng: np.random.Generator) -> Turn:
    """A request to copy two words between tags, which every language model can follow."""
    first, second = rng.choice(WORDS, size=2)
    return (
        f"Write {first} in <think></think>, then {second} in <answer></answer>.",
        f"<think> {first}</think><answer> {second}</answer>",
        None,
    )


class Reader:
    """Text batches whose image positions hold words instead of pixels."""

    def __init__(self, model: UniMedForConditionalGeneration, processor: UniMedProcessor, shown: Phantoms, settings: StandIn, seed: int):
        self.model, self.processor, self.shown, self.settings = model, processor, shown, settings
        self.turns = corpus(shown.scenes, seed)
        self.rng = np.random.default_rng([seed, 3])
        self.words = [f" {word}" for word in WORDS]
        self.sizes = [scene.image.shape for scene in shown.scenes]
        self.truth = truth(shown, model.config)

    def loss(self, step: int) -> Float[Tensor, ""]:
        """Next-word loss on the answers of one batch."""
        picked = self.rng.integers(len(self.turns), size=self.settings.language.batch_size)
        chosen = [self._conversation(self.turns[number]) for number in picked]
        batch = labelled(self.processor, [said for said, _ in chosen], [[self.sizes[number]] for number in picked])
        ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
        embeds = self._embeds(ids, torch.from_numpy(picked), [regions for _, regions in chosen])
        hidden = self.model.model.language_model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        return cross_entropy(self.model.lm_head(hidden[wanted != IGNORED]), wanted[wanted != IGNORED])

    def _conversation(self, turns: list[Turn]) -> tuple[list[dict], list[int]]:
        order = self.rng.permutation(len(turns))[: self.settings.questions_per_sequence]
        said = [{"role": role, "content": text} for i in order for role, text in zip(("user", "assistant"), turns[i][:2], strict=True)]
        said[0] = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": said[0]["content"]}]}
        return said, [turns[i][2] for i in order if turns[i][2] is not None]

    def _embeds(self, ids: Tensor, scenes: Tensor, regions: list[list[int]]) -> Float[Tensor, "batch seq width"]:
        """Embeddings with the image and region positions filled with what is true there, slightly blurred."""
        table = self.model.model.get_input_embeddings()
        words = torch.stack([table(torch.tensor(self.processor.tokenizer(word)["input_ids"])).sum(0) for word in self.words])
        slots = self.truth.facts[scenes] @ words
        slots = slots + 0.1 * words.detach().std() * torch.randn_like(slots)
        row = torch.tensor([i for i, labels in enumerate(regions) for _ in labels], dtype=torch.long)
        label = torch.tensor([name for labels in regions for name in labels], dtype=torch.long)
        cover = self.truth.cover[scenes[row], label]
        marked = pool(slots[row, -cover.shape[1:].numel() :], cover)
        config = self.model.config
        embeds = table(ids).masked_scatter((ids == config.image_token_id).unsqueeze(-1), slots[self.truth.real[scenes]])
        return embeds.masked_scatter((ids == config.region_token_id).unsqueeze(-1), marked)


@dataclass(frozen=True)
class Truth:
    """What is true at the image tokens of scenes, view by view; behind a scene's own tokens, where others have more, nothing is.

    `cover` is the share of each token that a class covers, on the views whose tokens a region is the mean of.
    """

    facts: Float[Tensor, "scene token word"]
    real: Bool[Tensor, "scene token"]
    cover: Float[Tensor, "scene class view side side"]


def truth(shown: Phantoms, config: UniMedConfig) -> Truth:
    """The scenes' truth on the square and, with canvases, on the tiles."""
    side = config.grid_size // config.pixel_shuffle
    square = shown.cells(torch.arange(len(shown.scenes)), side)
    facts = list(_facts(square, shown.scenes).unsqueeze(1))
    cover = list(square[:, :-1].unsqueeze(1))
    for number, (scene, grid) in enumerate(zip(shown.scenes, config.grids(scene.image.shape for scene in shown.scenes), strict=True)):
        if grid != NO_TILES:
            height, width = scene.image.shape
            masks = framed(scene, Letterbox(height, width, config.image_size, grid)).float()
            cells = with_calcified(adaptive_avg_pool2d(masks[None], (grid[0] * side, grid[1] * side)), [scene])
            facts[number] = torch.cat([facts[number], cut(_facts(cells, [scene]), grid)])
            cover[number] = cut(cells[:, :-1], grid)
    tokens = [views.flatten(2).transpose(1, 2).flatten(0, 1) for views in facts]
    real = pad_sequence([torch.ones(len(own), dtype=torch.bool) for own in tokens], batch_first=True)
    return Truth(pad_sequence(tokens, batch_first=True), real, pad_sequence(cover, batch_first=True).transpose(1, 2))


def _facts(cells: Float[Tensor, "scene label rows columns"], scenes: Sequence[Scene]) -> Float[Tensor, "scene word rows columns"]:
    """Which words are true of every grid cell: classes, sides, qualities of nodules; the modality where there is nothing else."""
    classes = (cells[:, :-1] > 0.2).float()
    anything = classes.amax(1, keepdim=True)
    columns = cells.shape[-1]
    left = (torch.arange(columns) < columns / 2).float().expand_as(anything)
    nodule = classes[:, CLASSES.index(LESION)].unsqueeze(1)
    calcified = torch.tensor([float(scene.calcified) for scene in scenes]).view(-1, 1, 1, 1)
    modality = torch.tensor([[float(scene.modality == name) for name in phantom_text.MODALITIES.values()] for scene in scenes])
    parts = [classes, anything * left, anything * (1 - left), nodule * calcified, nodule * (1 - calcified)]
    parts.append(modality[:, :, None, None] * (1 - anything))
    return torch.cat(parts, 1)


def train_language(
    model: UniMedForConditionalGeneration, processor: UniMedProcessor, shown: Phantoms, settings: StandIn, seed: int
) -> list[float]:
    """Teach the language model to read soft prompts and to answer in the phantoms' words."""
    reader = Reader(model, processor, shown, settings, seed)
    language = model.model.language_model
    matrices = [parameter for parameter in language.layers.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in language.parameters() if all(parameter is not matrix for matrix in matrices)]
    return minimise([*others, *model.lm_head.parameters()], reader.loss, settings.language, "language", matrices)
