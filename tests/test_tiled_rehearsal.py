"""What stands in for images before stage 1 on canvases: every token of every view holds what is true there."""

import pytest
import tiled
import tiny
import torch

from unimed.data import phantoms
from unimed.model.canvas import NO_TILES, cut
from unimed.model.letterbox import Letterbox
from unimed.origins import StandIn
from unimed.train import rehearsal_language, rehearsal_vision
from unimed.train.rehearsal_language import WORDS

OPTIMISATION = {"batch_size": 3, "max_steps": 2, "learning_rate": 1e-3, "warmup_steps": 0}
SETTINGS = StandIn.model_validate(
    {"cases": 1, "vocabulary": 300, "questions_per_sequence": 4} | dict.fromkeys(("vision", "masks", "language"), OPTIMISATION)
)
LIVER = WORDS.index("liver")


@pytest.fixture(scope="module")
def shown():
    return rehearsal_vision.show(SETTINGS, tiny.SIZE, seed=0)


def test_no_patient_of_the_foundation_is_one_of_the_data(shown):
    data = {scene.image.tobytes() for scene in phantoms.scenes(SETTINGS.cases, rehearsal_vision.SLICES, seed=0)}
    assert len(data) == len(shown.scenes) == rehearsal_vision.SLICES
    assert data.isdisjoint({scene.image.tobytes() for scene in shown.scenes})


@pytest.mark.parametrize("shuffle", [1, 2])
def test_every_token_of_the_tiles_says_what_its_place_on_the_canvas_holds(shown, shuffle):
    words, side = tiny.processor().tokenizer, 4 // shuffle
    config = tiny.config(words, canvases=tiled.CANVASES, pixel_shuffle=shuffle)
    found, plain = (rehearsal_language.truth(shown, each) for each in (config, tiny.config(words, pixel_shuffle=shuffle)))
    sizes = [scene.image.shape for scene in shown.scenes]
    for number, (scene, grid) in enumerate(zip(shown.scenes, config.grids(sizes), strict=True)):
        assert grid != NO_TILES
        assert torch.equal(found.facts[number, : side**2], plain.facts[number])
        canvas = rehearsal_vision.framed(scene, Letterbox(*sizes[number], tiny.SIZE, grid))
        shares = cut(canvas[None].float(), grid).unflatten(3, (side, -1)).unflatten(2, (side, -1)).mean((3, 5))
        torch.testing.assert_close(found.cover[number, :, : len(shares)].transpose(0, 1), shares)
        own = found.facts[number, side**2 : side**2 * (1 + len(shares)), LIVER]
        assert torch.equal(own.bool(), (shares[:, rehearsal_language.CLASSES.index("liver")] > 0.2).flatten())
        assert found.real[number].sum() == side**2 * (1 + grid[0] * grid[1])


def test_the_language_model_learns_from_scenes_on_canvases(shown):
    reader = rehearsal_language.Reader(tiled.stirred(), tiled.processor(), shown, SETTINGS, seed=0)
    loss = reader.loss(0)
    loss.backward()
    assert loss.isfinite()
    assert reader.model.model.get_input_embeddings().weight.grad.any()
