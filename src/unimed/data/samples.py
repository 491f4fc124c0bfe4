"""What a stage trains on: questions and answers about an image, with pixels and masks unpacked only when they are looked at."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from PIL import Image

from unimed.data import images, masks, shards
from unimed.data.shards import Place
from unimed.data.tables import SPLITS, Tables, matching
from unimed.errors import InputError

_MAX_PIXELS = 2**28
"""Far above any bound that ingest may be given: what is in a shard was let in before."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer. `regions` has one mask for each `<region>` of the question, `targets` one for each `<SEG>`."""

    question: str
    answer: str
    question_type: str
    answer_type: str
    conversation_id: str
    task: str
    options: tuple[str, ...]
    solution: str
    rationale: str
    height: int
    width: int
    region_rles: tuple[tuple[str, ...], ...]
    target_rles: tuple[tuple[str, ...], ...]

    @property
    def regions(self) -> tuple[masks.Pixels, ...]:
        """Masks of the marked regions, at the image's size."""
        return tuple(masks.union(rles, self.height, self.width) for rles in self.region_rles)

    @property
    def targets(self) -> tuple[masks.Pixels, ...]:
        """Masks that the answer points at, at the image's size; the union of instances where a target has several."""
        return tuple(masks.union(rles, self.height, self.width) for rles in self.target_rles)


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with the turns asked about it; `case` is "dataset/case"."""

    sample_id: str
    case: str
    modality: str
    dataset: str
    height: int
    width: int
    turns: tuple[Turn, ...]
    shards: Path
    place: Place

    def load_image(self) -> Image.Image:
        """The image as 8-bit RGB at its own size. Raises InputError when the shard does not hold it."""
        content = shards.read(self.shards, self.place)
        return images.rgb(images.decode(content, self.sample_id, _MAX_PIXELS))


@dataclass(frozen=True)
class Samples(Sequence[Sample]):
    """The samples of a split, by image; an epoch holds every conversation exactly once."""

    conversations: tuple[tuple[Sample, ...], ...]
    """For each image its conversations, each as a sample of its own."""

    items: tuple[tuple[int, tuple[int, ...]], ...]
    """For each sample of this epoch the image's number and those of the conversations joined in it."""

    joined_turns: int
    seed: int

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        image, chosen = self.items[index]
        joined = [self.conversations[image][number] for number in chosen]
        return replace(joined[0], turns=tuple(turn for sample in joined for turn in sample.turns))

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def at_epoch(self, epoch: int) -> "Samples":
        """The same conversations, joined in the order that seed and epoch draw; images keep their order."""
        return replace(self, items=tuple(_join(self.conversations, self.joined_turns, self.seed, epoch)))


def read(data: Path, shards: Path, split: str, turns: int = 1, seed: int = 0, epoch: int = 0) -> Samples:
    """The samples of a split of a subset; empty when the split holds none.

    Conversations about the same image are joined as long as a sample has no more than `turns` turns, so that one encoding of the
    image serves several questions. With one turn every conversation is a sample, whatever its length. Raises InputError for an
    unknown split or a folder without tables.
    """
    if split not in SPLITS:
        raise InputError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
    found = tuple(_by_image(Tables.read(data), shards, split))
    return Samples(found, (), joined_turns=turns, seed=seed).at_epoch(epoch)


def _join(found: Sequence[Sequence[Sample]], turns: int, seed: int, epoch: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    for image, conversations in enumerate(found):
        order = list(range(len(conversations)))
        if turns > 1:
            random.Random(f"{seed}/{epoch}/{conversations[0].sample_id}").shuffle(order)
        joined: list[int] = []
        length = 0
        for number in order:
            more = len(conversations[number].turns)
            if joined and length + more > turns:
                yield image, tuple(joined)
                joined, length = [], 0
            joined.append(number)
            length += more
        yield image, tuple(joined)


def _by_image(tables: Tables, folder: Path, split: str) -> Iterator[tuple[Sample, ...]]:
    rles = dict(zip(tables.masks["mask_id"], tables.masks["rle"], strict=True))
    conversations: dict[str, list[dict[Any, Any]]] = defaultdict(list)
    for said in tables.conversations.to_dict("records"):
        conversations[said["sample_id"]].append(said)
    for row in matching(tables.samples, "split", (split,)).to_dict("records"):
        if rows := conversations[row["sample_id"]]:
            yield tuple(_sample(row, folder, _turns(said, row, rles)) for said in rows)


def _sample(row: dict[Any, Any], folder: Path, turns: tuple[Turn, ...]) -> Sample:
    return Sample(
        sample_id=row["sample_id"],
        case=f"{row['dataset']}/{row['case']}",
        modality=row["modality"],
        dataset=row["dataset"],
        height=row["height"],
        width=row["width"],
        turns=turns,
        shards=folder,
        place=Place(shard=row["shard"], offset=row["offset"], size=row["size"]),
    )


def _turns(said: dict[Any, Any], row: dict[Any, Any], rles: dict[str, str]) -> tuple[Turn, ...]:
    return tuple(
        Turn(
            question=turn["question"],
            answer=turn["answer"],
            question_type=said["question_type"],
            answer_type=said["answer_type"],
            conversation_id=said["conversation_id"],
            task=said["task"],
            options=tuple(json.loads(said["options"] or "[]")),
            solution=said["solution"],
            rationale=said["rationale"],
            height=row["height"],
            width=row["width"],
            region_rles=tuple((rles[mask_id],) for mask_id in turn["regions"]),
            target_rles=tuple(tuple(rles[mask_id] for mask_id in target) for target in turn["targets"]),
        )
        for turn in json.loads(said["turns"])
    )
