"""Where models are when they are examined: on the device on which models are asked, and with them what they are shown."""

from pathlib import Path

import pytest
import tiny
import torch

from unimed.config import Evaluate
from unimed.eval import examination
from unimed.eval.scoring import Asking
from unimed.model import assemble

SETTINGS = Evaluate(batch_size=1, max_items=1, max_new_tokens=2, bootstrap_samples=2)

NOWHERE = examination.Folders({}, *[Path()] * 8)


class Seen(Exception):  # noqa: N818
    """The model was shown something."""


@pytest.fixture
def made(monkeypatch):
    """A model that tells on which device it is shown what, instead of looking; the device of models stands for a GPU."""
    monkeypatch.setattr(assemble, "device", lambda: torch.device("meta"))
    found = assemble.Assembled(tiny.stirred(), tiny.processor())

    def tell(module, args, given):
        raise Seen({found.model.device.type} | {value.device.type for value in given.values() if isinstance(value, torch.Tensor)})

    found.model.register_forward_pre_hook(tell, with_kwargs=True)
    return found


@pytest.fixture
def sample(tmp_path):
    return tiny.sample(tmp_path, tiny.turn("Is there a nodule?", "yes"))


@pytest.mark.parametrize("blank", [False, True])
def test_a_loss_is_taken_where_models_are_asked(made, sample, blank):
    with pytest.raises(Seen) as caught:
        examination.caption_losses(made, [sample], blank)
    assert caught.value.args == ({"meta"},)


def test_an_item_is_scored_where_models_are_asked(made, sample, monkeypatch):
    monkeypatch.setattr(examination.Examination, "held_out", lambda self, task: [sample])

    def score(asked, *rest):
        raise Seen({asked.model.device.type})

    monkeypatch.setattr(examination, "score", score)
    with pytest.raises(Seen) as caught:
        examination.Examination(NOWHERE, SETTINGS, 0).ask(made, Asking("vqa_expert", "vqa"))
    assert caught.value.args == ({"meta"},)
