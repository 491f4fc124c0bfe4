"""A batch in portions is counted without its padding, watched as a whole, and halved from what it holds."""

import pytest
import tiny
import torch
from failing import fit, model, refuse_more_than, sample
from test_loop import WEIGHTS, absent, several
from test_packing import rows_of

from unimed.train import portions
from unimed.train.batch import IGNORED, Collator


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The trainer names a folder relative to where it runs."""
    monkeypatch.chdir(tmp_path)


def test_terms_of_packed_rows_are_means_over_what_is_no_padding(tmp_path):
    samples = list(several(tmp_path, 5))
    pieces = [Collator(tiny.processor()).piece(one) for one in samples]
    words, tokens = sum(int((piece.labels[1:] != IGNORED).sum()) for piece in pieces), sum(len(piece.ids) for piece in pieces)
    by_token, by_sequence = (portions.counts(rows_of(samples), level) for level in ("token", "sequence"))
    assert by_token == {"words": words, "pixel": 2, "dice": 2, "balance": tokens, "z": tokens}
    assert by_sequence == by_token | {"balance": 5, "z": 5}


@pytest.mark.parametrize("seed", range(3))
def test_what_has_no_gradient_although_a_portion_had_masks_stops_the_run_whichever_portion_that_was(tmp_path, seed):
    made = model("grounding.text_hidden_fcs", "grounding.sam.mask_decoder.iou_prediction_head")
    samples = [sample(tmp_path, 1) if number == seed else absent(tmp_path, 20 + number) for number in range(3)]
    with pytest.raises(RuntimeError, match="expected a gradient for exactly what trains, found otherwise for .*iou_prediction_head"):
        fit(made, samples, mask_loss=WEIGHTS, batch_size=3, samples_at_once=1)


def test_a_portion_whose_loss_is_no_number_makes_the_batchs_none(tmp_path):
    samples = [sample(tmp_path, 0), sample(tmp_path, 2, poisoned=True)]
    with pytest.raises(FloatingPointError, match=r"at step 0, found \{'words': nan, 'gradient': nan\}"):
        fit(model(), samples, batch_size=2, samples_at_once=1, max_steps=1)


def test_a_batch_smaller_than_what_may_go_at_once_is_halved_from_its_own_size(tmp_path):
    made = model()
    asked = refuse_more_than(made, 0)
    with pytest.raises(torch.OutOfMemoryError):
        fit(made, [sample(tmp_path, seed) for seed in range(4)], {"out_of_memory": "halve"}, batch_size=4, samples_at_once=100)
    assert asked == [4, 2, 1]
