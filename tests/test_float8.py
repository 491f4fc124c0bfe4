"""The frozen language model in eight bits: what is rounded, what stays exact, and that a bad rounding is told before it trains."""

import pytest
import tiny
import torch
from problems import settings as rewarded
from pydantic import ValidationError
from test_fast_path import with_adapter
from test_loop import several
from test_packing import adapted, rows_of
from torch import nn

from unimed.config import Optimisation, RouterLoss
from unimed.errors import InputError
from unimed.model import attention
from unimed.model.experts import RoutedLinear
from unimed.sections import Failures
from unimed.train import float8, loop, memory
from unimed.train.batch import Collator
from unimed.train.draws import Draws
from unimed.train.portions import InPortions
from unimed.train.readable import UNREADABLE

ROWS = {"row_tokens": 400, "batch_size": 2, "samples_at_once": 1, "max_steps": 4, "learning_rate": 0.01, "warmup_steps": 0}
SETTINGS = Optimisation(**ROWS, dtype="bfloat16", float8=True)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The trainer names a folder relative to where it runs."""
    monkeypatch.chdir(tmp_path)


def test_a_row_is_rounded_to_eight_bits_of_which_its_largest_number_uses_all():
    rows = torch.tensor([[448.0, 17.0, -0.3, 0.0], [4.48, 0.17, -0.003, 0.0], [0.0] * 4])
    small, scale = float8.rounded(rows)
    # E4M3 has three bits after the point: 17 lies midway between 16 and 18 and goes to the even one.
    assert small.float()[0].tolist() == [448.0, 16.0, -0.3125, 0.0]
    assert small.float()[1].tolist() == [448.0, 16.0, -0.3125, 0.0]
    assert scale[:2].flatten().tolist() == pytest.approx([1.0, 0.01])
    assert (small.float()[2] == 0).all()
    assert scale[2] >= torch.finfo(torch.float32).tiny, "a smaller one may be taken for zero, by which nothing can be divided"


def test_the_product_and_its_gradient_are_those_of_the_rounded_numbers():
    draw = torch.Generator().manual_seed(0)
    rows, weight, gradient = (torch.randn(*size, generator=draw).bfloat16() for size in ((48, 64), (32, 64), (48, 32)))
    weight *= torch.logspace(-3, 3, 32).unsqueeze(1).bfloat16()  # rows of very different size
    small, scale = float8.rounded(weight)
    rows.requires_grad_()
    found = float8.Product.apply(rows, small, scale)
    found.backward(gradient)

    def told(numbers):
        values, factor = float8.rounded(numbers)
        return values.double() * factor

    kept = small.double() * scale
    torch.testing.assert_close(found.double(), told(rows.detach()) @ kept.T, rtol=0.01, atol=1e-3 * found.detach().abs().max().item())
    wanted = told(gradient * scale.T) @ small.double()
    torch.testing.assert_close(rows.grad.double(), wanted, rtol=0.01, atol=2e-2)
    # Row by row the output is right whatever its size: one scale for the whole weight would have lost the small ones.
    exact = rows.detach().double() @ weight.double().T
    assert ((found.double() - exact).norm(dim=0) / exact.norm(dim=0)).max() < 0.06


@pytest.mark.parametrize("kind", ["adapter", "experts"])
def test_outputs_are_near_within_the_block_and_the_same_after_it(tmp_path, kind):
    model = (adapted() if kind == "adapter" else tiny.stirred(**tiny.EXPERTS)).bfloat16().requires_grad_(False)
    given, language = rows_of(list(several(tmp_path, 5))), model.model.language_model
    given = {name: value for name, value in given.items() if name not in ("masks", "labels")}
    kinds = {name: type(part) for name, part in language.named_modules()}
    with attention.packed(language):
        before = model.model(**given, use_cache=False).last_hidden_state
        with float8.multiplied(language):
            within = model.model(**given, use_cache=False).last_hidden_state
            changed = {name for name, part in language.named_modules() if type(part) is not kinds[name]}
        after = model.model(**given, use_cache=False).last_hidden_state
    assert torch.equal(before, after)
    assert 0 < (within - before).norm() / before.norm() < 0.15
    ends = {name.removesuffix(".base_layer").rpartition(".")[2] for name in changed}
    assert ends == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(changed) == 7 * len(language.layers)
    assert kinds == {name: type(part) for name, part in language.named_modules()}
    assert "small" not in "".join(model.state_dict())


def test_a_bias_is_added_as_it_is():
    """Qwen's queries, keys and values have one."""
    model = tiny.stirred()
    projection = nn.Linear(32, 32)
    torch.nn.init.constant_(projection.bias, 1000.0)
    model.model.language_model.layers[0].self_attn.q_proj = projection
    model.requires_grad_(False)
    with float8.multiplied(model.model.language_model):
        assert (projection(torch.zeros(2, 3, 32)) == 1000).all()


def test_what_trains_and_what_stands_beside_is_not_rounded():
    model = with_adapter()
    language = model.model.language_model
    language.layers[0].self_attn.q_proj.base_layer.weight.requires_grad_()
    chosen = float8.linears(language)
    assert "0.self_attn.q_proj.base_layer" not in chosen and "1.self_attn.q_proj.base_layer" in chosen
    assert not any("lora" in name or "router" in name for name in chosen)
    routed = float8.linears(tiny.stirred(**tiny.EXPERTS).requires_grad_(False).model.language_model)
    assert any(type(part) is RoutedLinear for part in routed.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "experts"])
def test_what_is_learned_beside_eight_bits_is_near_what_is_learned_beside_sixteen(tmp_path, kind):
    losses: dict[bool, torch.Tensor] = {}
    for settings in (SETTINGS, SETTINGS.model_copy(update={"float8": False})):
        model = adapted() if kind == "adapter" else tiny.stirred(**tiny.EXPERTS)
        names = [name for name, _ in model.named_parameters() if "lora" in name or ".router." in name]
        loop.train_only(model, names)
        weights = RouterLoss(balance_weight=0.1, z_weight=0.1) if kind == "experts" else None
        logged = loop.fit(model, several(tmp_path, 8), Collator(tiny.processor()), settings, 0, "tiny", router_loss=weights)
        losses[settings.float8] = torch.tensor([entry["loss_words"] for entry in logged])
        assert not float8.KINDS.keys().isdisjoint({type(part) for part in model.modules()})
        assert not any(isinstance(part, float8.Float8Linear) for part in model.modules())
    assert 0 < (losses[True] - losses[False]).abs().max() < 0.01 * losses[False].min()
    eight, sixteen = (found - found[0] for found in (losses[True], losses[False]))
    assert (eight - sixteen).abs().max() < 0.25 * sixteen.abs().max(), "what changed is what would have changed"


@pytest.mark.slow
def test_a_run_that_eight_bits_would_spoil_is_told_before_its_first_step(tmp_path, monkeypatch, caplog):
    model, samples = adapted(), several(tmp_path, 1)  # one, since the mean over several words of chance hides it
    model.lm_head.weight.data *= 20  # so that small differences of states make large ones of words
    loop.train_only(model, [name for name, _ in model.named_parameters() if "lora" in name])
    monkeypatch.setattr(float8, "LARGEST", 2.0**-9)  # the least that is not zero: all else of a row becomes it or nothing
    with caplog.at_level("INFO"), pytest.raises(InputError, match=r"expected float8 to change the first rows' loss by at most 1%, found"):
        loop.fit(model, samples, Collator(tiny.processor()), SETTINGS, 0, "tiny")
    assert "in eight bits" in caplog.text
    assert not any(isinstance(part, float8.Float8Linear) for part in model.modules())


@pytest.mark.parametrize(
    ("scale", "told"), [(-20.0, r"\d\.\d%, 4[567]\.\d+ after 48\.\d+"), (float("nan"), "nan%, nan after nan")], ids=["smaller", "no number"]
)
def test_a_loss_that_eight_bits_make_smaller_or_that_is_no_number_is_no_better(tmp_path, monkeypatch, scale, told):
    model, given = adapted(), rows_of(list(several(tmp_path, 2)))
    model.lm_head.weight.data *= scale
    monkeypatch.setattr(float8, "LARGEST", 2.0**-9)
    with pytest.raises(InputError, match=f"loss by at most 1%, found {told}; leave float8 out"):
        float8.judged(model.bfloat16().requires_grad_(False), given)


def test_what_is_seen_to_work_is_the_first_portion_that_can_be_read(tmp_path):
    samples = several(tmp_path, 2)
    torn = samples[0].sample_id

    def read(items):
        return {UNREADABLE: [torn]} if items[0].sample_id == torn else {"input_ids": items[0].sample_id}

    draws = Draws(samples, 8, 0)
    assert torn in [draws[number].sample_id for number in range(8)]
    assert loop.first(draws, InPortions(read, 1), Failures(unreadable="skip", most_skipped=1)) == {"input_ids": samples[1].sample_id}
    torn = [draws[number].sample_id for number in range(8)]
    with pytest.raises(InputError, match="expected one of the first 2 to be readable, as failures.most_skipped is 1, found none"):
        loop.first(draws, InPortions(lambda items: {UNREADABLE: torn}, 1), Failures(unreadable="skip", most_skipped=1))


def test_a_run_that_fails_leaves_the_weights_as_they_were():
    model = with_adapter()
    with pytest.raises(KeyError, match="lost"), float8.multiplied(model.model.language_model):
        raise KeyError("lost")
    assert float8.linears(model.model.language_model)


def test_widths_that_cannot_be_multiplied_are_named():
    model = tiny.stirred()
    model.model.language_model.layers[1].mlp.up_proj = nn.Linear(32, 50)
    model.requires_grad_(False)
    with pytest.raises(InputError, match="multiples of 16, found 50 in 1.mlp.up_proj"), float8.multiplied(model.model.language_model):
        pass


def test_the_copies_are_counted_before_a_run():
    model = with_adapter(rank=2)
    apart, beside = (memory.estimate(model, SETTINGS.model_copy(update={"float8": asked})) for asked in (False, True))
    linears = float8.linears(model.model.language_model).values()
    assert beside.weights - apart.weights == sum(part.weight.numel() + 4 * part.weight.shape[0] for part in linears) > 0
    assert beside.total - apart.total == beside.weights - apart.weights


def test_eight_bits_are_refused_where_they_do_not_go():
    with pytest.raises(ValidationError, match="float8 needs dtype bfloat16"):
        Optimisation(**ROWS, float8=True)
    with pytest.raises(ValidationError, match="float8 must be left out here: answers are written by the weights as they are"):
        rewarded(dtype="bfloat16", float8=True)
    with pytest.raises(ValidationError, match="and no deepspeed"):
        Optimisation(**ROWS | {"samples_at_once": None}, dtype="bfloat16", float8=True, deepspeed="zero.json")
