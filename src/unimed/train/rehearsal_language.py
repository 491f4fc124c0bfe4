"""What the rehearsal's language model is shown before stage 1, in place of internet pre-training.

It reads soft prompts: where an image will stand, each position holds the sum of the embeddings of the words that are true of
that cell. A language model of full size can read such mixtures; a small one has to be shown. It sees captions and questions
about phantoms of its own and requests to copy words between tags; no multiple choice, no `<SEG>`, and no pixel.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from unimed.data import phantom_text
from unimed.data.phantoms import CLASSES, LESION, Scene
from unimed.model.processor import REGION, UniMedProcessor
from unimed.model.region import pool
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.origins import StandIn
from unimed.train.batch import IGNORED, labelled
from unimed.train.optimise import minimise
from unimed.train.rehearsal_vision import Phantoms

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
        self.facts = _facts(shown, model.config.grid_size)

    def loss(self, step: int) -> Float[Tensor, ""]:
        """Next-word loss on the answers of one batch."""
        picked = self.rng.integers(len(self.turns), size=self.settings.language.batch_size)
        chosen = [self._conversation(self.turns[number]) for number in picked]
        batch = labelled(self.processor, [said for said, _ in chosen])
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
        slots = self.facts[scenes] @ words
        slots = slots + 0.1 * words.detach().std() * torch.randn_like(slots)
        row = torch.tensor([i for i, labels in enumerate(regions) for _ in labels], dtype=torch.long)
        label = torch.tensor([name for labels in regions for name in labels], dtype=torch.long)
        marked = pool(slots[row], self.shown.masks[scenes[row], label].float())
        config = self.model.config
        embeds = table(ids).masked_scatter((ids == config.image_token_id).unsqueeze(-1), slots)
        return embeds.masked_scatter((ids == config.region_token_id).unsqueeze(-1), marked)


def _facts(shown: Phantoms, side: int) -> Float[Tensor, "scene cell word"]:
    """Which words are true of every grid cell: classes, sides, qualities of nodules; the modality where there is nothing else."""
    cells = shown.cells(torch.arange(len(shown.scenes)), side)
    classes = (cells[:, :-1] > 0.2).float()
    anything = classes.amax(1, keepdim=True)
    left = (torch.arange(side) < side / 2).float().expand_as(anything)
    nodule = classes[:, CLASSES.index(LESION)].unsqueeze(1)
    calcified = torch.tensor([float(scene.calcified) for scene in shown.scenes]).view(-1, 1, 1, 1)
    modality = torch.tensor([[float(scene.modality == name) for name in phantom_text.MODALITIES.values()] for scene in shown.scenes])
    parts = [classes, anything * left, anything * (1 - left), nodule * calcified, nodule * (1 - calcified)]
    parts.append(modality[:, :, None, None] * (1 - anything))
    return torch.cat(parts, 1).flatten(2).transpose(1, 2)


def train_language(
    model: UniMedForConditionalGeneration, processor: UniMedProcessor, shown: Phantoms, settings: StandIn, seed: int
) -> list[float]:
    """Teach the language model to read soft prompts and to answer in the phantoms' words."""
    reader = Reader(model, processor, shown, settings, seed)
    language = model.model.language_model
    matrices = [parameter for parameter in language.layers.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in language.parameters() if all(parameter is not matrix for matrix in matrices)]
    return minimise([*others, *model.lm_head.parameters()], reader.loss, settings.language, "language", matrices)
