"""Packed rows of images on canvases: read, learned from and pointed in as if each sample stood alone; towers are compiled once for all."""

import tempfile
from pathlib import Path

import pytest
import tiled
import tiny
import torch
from test_fast_path import apart
from test_packing import CLOSE, learned

from unimed.config import RouterLoss
from unimed.model import attention
from unimed.model.canvas import squares
from unimed.train.batch import Collator
from unimed.train.compiled import compiled
from unimed.train.rows import RowCollator

KINDS = {
    "plain": {},
    "fewer tokens": {"pixel_shuffle": 2},
    "sequence": {**tiny.EXPERTS, "router_level": "sequence"},
    "token": {**tiny.EXPERTS, "router_level": "token", "router_choice": "top1"},
}


def seen_on(folder, *grids):
    """A sample for each canvas: a question, a marked region and, but for the first, a target."""
    found = []
    for seed, grid in enumerate(grids):
        size = tiled.SHAPES[grid]
        mask = tiny.box(size[0] // 4, size[1] // 4, size[0] // 3, size[1] // 3, of=size)
        turns = [tiny.turn("Is there a nodule?", ("yes", "no")[seed % 2], side=size)]
        turns += [tiny.turn("Which structure is marked? <region>", "the liver", regions=[mask], side=size)]
        turns += [tiny.turn("Segment it.", "It is <SEG>.", targets=[mask], side=size)] if seed else []
        found.append(tiny.sample(folder, *turns, seed=seed, side=size))
    return found


def packed(samples, *rows, **changes):
    """One batch of rows, each of the samples with these numbers."""
    collator = Collator(tiled.processor(**changes))
    return RowCollator(collator, 700)([[collator.piece(samples[number]) for number in row] for row in rows])


@pytest.mark.parametrize("kind", KINDS)
def test_packed_samples_on_canvases_give_the_loss_the_masks_and_the_gradients_of_padded_ones(tmp_path, kind):
    model, samples = tiled.stirred(**KINDS[kind]), seen_on(tmp_path, *tiled.CANVASES)
    router = RouterLoss(balance_weight=0.3, z_weight=0.2) if "experts" in KINDS[kind] else None
    padded = learned(model, Collator(tiled.processor(**KINDS[kind]))(samples), packed=False, router=router)
    found = learned(model, packed(samples, [0, 1, 2], [3, 4], **KINDS[kind]), packed=True, router=router)
    torch.testing.assert_close(found[0], padded[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1], padded[1], **CLOSE)
    assert found[2].keys() == padded[2].keys()
    for name, gradient in padded[2].items():
        torch.testing.assert_close(found[2][name], gradient, **CLOSE, msg=lambda said, name=name: f"{name}: {said}")


def test_every_image_takes_the_tokens_of_its_views_and_every_seg_looks_at_its_own(tmp_path):
    batch = packed(seen_on(tmp_path, *tiled.CANVASES), [4, 0], [2, 3, 1])
    packing = batch["packing"]
    assert packing.grids == ((1, 3), (1, 2), (2, 2), (3, 1), (2, 1))
    assert len(packing.images) == 16 * sum(map(squares, packing.grids)) == 16 * (4 + 3 + 5 + 4 + 3)
    # The second image alone has no target; images are counted in the order in which they stand.
    assert packing.shown[packing.pointing[1]].tolist() == [0, 2, 3, 4]
    assert packing.regions[1:].tolist() == [[0, 1, 2, 3, 4], [0] * 5]


def graphs(kind: str) -> list[int]:
    """How many graphs there are after each of several batches on other canvases, and last how many breaks."""
    made, found, counters = tiled.stirred(), [], torch._dynamo.utils.counters
    with tempfile.TemporaryDirectory() as aside, attention.packed(made.model.language_model), compiled(made, backend="eager"):
        samples = seen_on(Path(aside), *tiled.CANVASES)
        for numbers in ([0], [0, 1], [1], [2], [3, 4], [4], [0, 1, 2, 3, 4], [2, 3]):
            given = packed(samples, numbers)
            pointing = given.pop("masks", None) is not None
            made(**given, segment=pointing, use_cache=False).loss.backward()
            found.append(counters["stats"][kind])
    return [*found, len(counters["graph_break"])]


@pytest.mark.slow
def test_a_canvas_of_another_shape_is_not_compiled_anew():
    """The detail tower has a graph for each of its two stages; the mask encoder, when it comes in, one with windows and one without.

    Nothing depends on the canvases or on how many images a batch has.
    """
    assert apart("test_packed_canvases", "graphs", "unique_graphs") == [4, *[6] * 7, 0]
