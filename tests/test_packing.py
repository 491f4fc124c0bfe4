"""Packed rows: what goes together, and that a sample in a row is read, learned from and pointed in as if it stood alone."""

import dataclasses
from contextlib import nullcontext
from itertools import combinations

import numpy as np
import pytest
import tiny
import torch
from test_loop import several

from unimed.config import RouterLoss
from unimed.errors import InputError
from unimed.model import adapters, attention, experts
from unimed.model.assemble import EXPERT_TARGETS
from unimed.model.packing import Packing, prompts
from unimed.train.batch import IGNORED, Collator
from unimed.train.draws import Draws
from unimed.train.rows import RowCollator, Rows, fullest
from unimed.train.stage_trainer import router_terms

CLOSE = {"atol": 1e-6, "rtol": 1e-4}
"""Sums are taken in another order; gradients here are of the order of 0.01 to 1."""

ROW = 512


@pytest.fixture
def samples(tmp_path):
    """Five images with questions, regions and two targets."""
    return list(several(tmp_path, 5))


def rows_of(samples, row_tokens: int = ROW):
    collator = Collator(tiny.processor())
    return RowCollator(collator, row_tokens)([[collator.piece(sample) for sample in part] for part in (samples[:2], samples[2:])])


def learned(model, given, packed: bool, router: RouterLoss | None = None):
    """Loss, masks and all gradients of a batch."""
    given = dict(given)
    given.pop("masks")
    model.zero_grad()
    with attention.packed(model.model.language_model) if packed else nullcontext():
        found = model(**given, segment=True, use_cache=not packed)
        loss = found.loss + found.mask_logits.square().mean()
        if router:
            mask = None if packed else given["attention_mask"].bool()
            loss = loss + sum(router_terms(model, mask, router, given.get("packing")).values())
        loss.backward()
    return loss.detach(), found.mask_logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def adapted():
    model = tiny.stirred()
    added = adapters.add(model.model.language_model, "vqa", 4, 2.0, EXPERT_TARGETS)
    parameters = dict(model.model.language_model.named_parameters())
    for name in added:
        torch.nn.init.normal_(parameters[name], std=0.2, generator=torch.Generator().manual_seed(3))
    return model


ROUTED = {f"{level} {choice}": tiny.EXPERTS | {"router_level": level, "router_choice": choice}
          for level in ("sequence", "token") for choice in ("soft", "top1")}  # fmt: skip


@pytest.mark.parametrize("kind", ["whole", "adapter", *ROUTED])
def test_packed_rows_give_the_loss_the_masks_and_the_gradients_of_padded_samples(samples, kind):
    model = tiny.stirred(**ROUTED[kind]) if kind in ROUTED else adapted() if kind == "adapter" else tiny.stirred()
    router = RouterLoss(balance_weight=0.3, z_weight=0.2) if kind in ROUTED else None
    padded = learned(model, Collator(tiny.processor())(samples), packed=False, router=router)
    packed = learned(model, rows_of(samples), packed=True, router=router)
    torch.testing.assert_close(packed[0], padded[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(packed[1], padded[1], **CLOSE)
    assert packed[2].keys() == padded[2].keys()
    for name, gradient in padded[2].items():
        torch.testing.assert_close(packed[2][name], gradient, **CLOSE, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_decisions_of_packed_samples_are_those_of_padded_ones(samples, level):
    model = tiny.stirred(**tiny.EXPERTS, router_level=level)
    padded, packed = Collator(tiny.processor())(samples), rows_of(samples)
    learned(model, padded, packed=False)
    expected = experts.take_decisions(model, padded["attention_mask"].bool())
    learned(model, packed, packed=True)
    torch.testing.assert_close(experts.take_decisions(model, None, packed["packing"]), expected, atol=1e-5, rtol=0)


def test_a_sample_sees_nothing_of_its_neighbours(samples):
    model, other = tiny.stirred(), list(samples)
    other[1] = samples[4]
    with attention.packed(model.model.language_model), torch.no_grad():
        first, second = (model.model(**_read(rows_of(row)), use_cache=False).last_hidden_state[0] for row in (samples, other))
    own = rows_of(samples)["packing"].segment == 0
    assert own.sum() > 20
    torch.testing.assert_close(first[own[: len(first)]], second[: own.sum()], **CLOSE)


def _read(batch):
    return {name: batch[name] for name in ("input_ids", "position_ids", "pixel_values", "packing")}


def test_rows_hold_the_samples_one_after_the_other(samples):
    collator = Collator(tiny.processor())
    pieces, batch = [collator.piece(sample) for sample in samples], rows_of(samples)
    packing = batch["packing"]
    ends = np.cumsum([0, *(len(piece.ids) for piece in pieces)])
    assert batch["input_ids"].shape == (1, 2 * ROW)
    assert packing.bounds[:7].tolist() == [*ends, 2 * ROW]
    assert packing.extent.tolist() == [6, max(*np.diff(ends), 2 * ROW - ends[-1])]
    assert (packing.samples, packing.tokens) == (5, ends[-1])
    for number, piece in enumerate(pieces):
        place = slice(ends[number], ends[number + 1])
        assert batch["input_ids"][0, place].tolist() == piece.ids.tolist()
        assert batch["position_ids"][0, place].tolist() == list(range(len(piece.ids)))
        assert (packing.segment[place] == number).all()
        asked = [(place.start + at - 1, word) for at, word in enumerate(piece.labels.tolist()) if word != IGNORED]
        inside = (packing.predicting >= place.start) & (packing.predicting < place.stop)
        assert list(zip(packing.predicting[inside].tolist(), packing.wanted[inside].tolist(), strict=True)) == asked


def test_a_row_without_room_to_spare_has_no_padding_segment(samples):
    collator = Collator(tiny.processor())
    piece = collator.piece(samples[0])
    packing = RowCollator(collator, len(piece.ids))([[piece], [piece]])["packing"]
    assert packing.extent.tolist() == [2, len(piece.ids)]
    assert packing.tokens == 2 * len(piece.ids) == len(packing.segment)


def test_the_first_word_of_a_sample_is_never_asked_of_the_sample_before(samples):
    collator = Collator(tiny.processor())
    piece = collator.piece(samples[0])
    labelled = dataclasses.replace(piece, labels=piece.ids)
    packing = RowCollator(collator, ROW)([[labelled, labelled]])["packing"]
    assert len(piece.ids) - 1 not in packing.predicting.tolist()
    assert len(packing.wanted) == 2 * (len(piece.ids) - 1)


def test_a_seg_in_a_sample_without_an_image_before_it_is_refused(samples):
    collator = Collator(tiny.processor())
    piece = collator.piece(samples[1])
    wordless = dataclasses.replace(piece, ids=piece.ids[::-1].copy())
    with pytest.raises(InputError, match="expected an image before every <SEG>"):
        RowCollator(collator, ROW)([[wordless]])


def test_a_prompt_ends_at_the_first_answer_of_its_own_sample():
    """I is an image token, AB the opening of an answer, x words: two samples, at whose seam there is no opening, and padding."""
    text = "IxxABxABABxIxABxAB.."
    config = tiny.config(tiny.processor().tokenizer, answer_opening=[65, 66], image_token_id=73)
    ids = torch.tensor([[ord(letter) for letter in text]])
    bounds = torch.tensor([0, 9, 18, 20, *[20] * 18], dtype=torch.int32)
    segment = torch.tensor([0] * 9 + [1] * 9 + [2] * 2)
    empty = torch.empty(0, dtype=torch.long)
    places = {"images": empty, "predicting": empty, "wanted": empty, "shown": empty, "pointing": empty.view(2, 0)}
    packing = Packing(
        samples=2, tokens=18, grids=(), extent=torch.tensor([3, 9]), bounds=bounds, segment=segment, regions=empty.view(3, 0), **places
    )
    found = prompts(ids, ids != ord("."), config, packing)[0]
    # The opening belongs to the prompt, which its image does not.
    assert "".join("x" if kept else "-" for kept in found) == "-xxxx----xx-xxx-----"


def test_a_row_takes_the_largest_left_and_what_fills_it_best():
    assert fullest([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    # Beside 5 not 4, the largest that fits: that would leave room for nothing, and the six would need three rows.
    assert fullest([5, 4, 3, 3, 3, 2], 10) == [[0, 2, 5], [1, 3, 4]]
    assert fullest([3, 10, 3], 10) == [[1], [0, 2]]
    assert fullest([], 10) == []
    # What was begun is filled up first, here by what leaves no room.
    assert fullest([2, 3, 6, 5, 4], 10, begun=2) == [[0, 1, 3], [2, 4]]


def test_no_choice_of_what_is_left_would_fill_a_row_better():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes, left = rng.integers(1, 40, 12).tolist(), set(range(12))
        for row in fullest(sizes, 50):
            first, *_ = row
            assert sizes[first] == max(sizes[number] for number in left)
            others = sorted(left - {first})
            sums = {sum(chosen) for count in range(12) for chosen in combinations([sizes[number] for number in others], count)}
            assert sum(sizes[number] for number in row[1:]) == max(one for one in sums if one <= 50 - sizes[first])
            left -= set(row)
        assert not left


WHOLE = [1728, 1728, 2304, 2304, 2880]
"""Tokens of an image on FILA's five canvases."""


@pytest.mark.parametrize(("lengths", "row", "full"), [
    ("one image", 8192, 0.99), ("one image", 8448, 0.99), ("mixed", 8192, 0.995), ("canvases", 8192, 0.99), ("canvases", 8448, 0.98),
])  # fmt: skip
def test_rows_are_full_on_the_lengths_of_training(lengths, row, full):
    rng = np.random.default_rng(0)
    text, images = rng.integers(50, 401, 3000), rng.choice([0, 1, 2, 3, 4], 3000, p=[0.3, 0.5, 0.067, 0.067, 0.066])
    seen = {"one image": 576, "mixed": 576 * images, "canvases": rng.choice(WHOLE, 3000)}[lengths]
    sizes = (text + seen).tolist()
    rows = [one for start in range(0, 3000, 1000) for one in fullest(sizes[start : start + 1000], row)]
    assert sorted(np.concatenate([np.array(one) for one in rows])) == sorted(list(range(1000)) * 3)
    assert sum(sizes) / (row * len(rows)) >= full


def drawn_rows(tmp_path, row_tokens=200, window=6):
    samples = several(tmp_path, 8)
    return Rows(Draws(samples, 1, seed=4), Collator(tiny.processor()).piece, row_tokens, 20, window=window)


def test_rows_show_every_sample_once_an_epoch_and_are_the_same_whenever_asked(tmp_path):
    rows = drawn_rows(tmp_path)
    found = [[piece.sample.sample_id for piece in rows[number]] for number in range(20)]
    assert all(sum(len(piece.ids) for piece in rows[number]) <= 200 for number in range(20))
    again = drawn_rows(tmp_path)
    assert [[piece.sample.sample_id for piece in again[number]] for number in (17, 3, 11)] == [found[17], found[3], found[11]]
    assert rows.starts[4] <= 20
    four = [name for row in found[: rows.starts[4]] for name in row]  # four windows of six are three epochs of eight
    over = [rows.draws[number].sample_id for number in rows.over[4]]
    assert over, "what was left over is in no row yet"
    assert sorted(four + over) == sorted([f"image{seed}" for seed in range(8)] * 3)


def test_what_is_left_over_of_a_window_is_filled_up_in_the_next(tmp_path):
    rows = drawn_rows(tmp_path)
    for number in range(20):
        assert rows[number]
    for window in range(1, len(rows.over) - 1):
        begun = [rows.draws[number].sample_id for number in rows.over[window]]
        shown = [[piece.sample.sample_id for piece in rows[number]] for number in range(rows.starts[window], rows.starts[window + 1])]
        assert any(row[: len(begun)] == begun for row in shown)
        assert max(rows.over[window]) < window * rows.window


def test_the_longest_sample_may_fill_a_row_and_rows_come_in_no_order_of_length(tmp_path):
    rows = drawn_rows(tmp_path)
    longest = max(len(rows.piece(rows.draws[number]).ids) for number in range(8))
    found = drawn_rows(tmp_path, row_tokens=longest, window=40)
    first = [len(found[number][0].ids) for number in range(20)]
    assert max(first) == longest
    assert first != sorted(first, reverse=True)


def test_a_sample_that_no_row_can_hold_is_said_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"params.yaml: row_tokens must hold the longest sample, is 30, found sample image\d of \d\d"):
        drawn_rows(tmp_path, row_tokens=30)[0]
