"""What routers chose, added up over passes."""

from itertools import pairwise

import pytest
import tiny
import torch

from unimed.model import router_use
from unimed.model.experts import Router

TEXTS = ("<image>Is there a nodule?", "<image>Which structure is marked?", "<image>Is it?")


def test_shares_are_those_of_all_that_was_routed_layer_by_layer():
    use = router_use.RouterUse(("vqa", "grounding"))
    for layer, share in ((1, [3.0, 1.0]), (0, [1.0, 1.0]), (1, [0.0, 12.0])):
        use.add(layer, torch.tensor(share))
    assert use.shares() == [(0, "vqa", 0.5), (0, "grounding", 0.5), (1, "vqa", 0.1875), (1, "grounding", 0.8125)]


def test_every_question_counts_once_however_many_are_asked_at_a_time():
    model = tiny.stirred(**tiny.EXPERTS, router_level="sequence")
    for router in (module for module in model.modules() if isinstance(module, Router)):
        torch.nn.init.normal_(router.linear.weight, generator=torch.Generator().manual_seed(2))
    pictures, texts, found = [tiny.picture(seed) for seed in range(3)], tiny.ask(*TEXTS), []
    for portions in ([0, 2, 3], [0, 1, 2, 3]):
        with torch.no_grad(), router_use.watched(model) as use:
            for start, end in pairwise(portions):
                model(**tiny.inputs(pictures[start:end], *texts[start:end]))
        assert [float(total.sum()) for total in use.totals.values()] == pytest.approx([3, 3])
        found.append(use.shares())
    assert [share for *_, share in found[0]] == pytest.approx([share for *_, share in found[1]], abs=2e-4)
    with torch.no_grad():
        model(**tiny.inputs(pictures, *texts))
    assert float(use.totals[0].sum()) == pytest.approx(3), "nobody watches any more"
