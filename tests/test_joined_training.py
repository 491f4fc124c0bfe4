"""Linears joined for a training: the same results and gradients in fewer products, nothing held twice, all as before afterwards."""

import copy
import tempfile
from pathlib import Path

import pytest
import tiny
import torch
from test_fast_path import ROWS, Products, apart
from test_joined import PLAIN, whole
from test_loop import several
from test_packing import rows_of

from unimed.config import Optimisation
from unimed.model import attention
from unimed.model.assemble import EXPERT_TARGETS
from unimed.model.together import Later
from unimed.train import loop
from unimed.train.batch import Collator
from unimed.train.compiled import compiled
from unimed.train.joined import Joined, joined

CASES = {"experts and an adapter": {"expert_targets": list(EXPERT_TARGETS)}, "an adapter": PLAIN, "in part": {"expert_targets": ["k_proj"]}}


def model(**changes):
    """A model with biased linears, experts or none, and an adapter, of which no base weight trains."""
    made = whole(**changes)
    for name, parameter in made.model.language_model.named_parameters():
        parameter.requires_grad_("lora" in name or "expert" in name or "router" in name)
    return made


def learned(made, given):
    """Loss, gradients, and operations in products of a packed batch."""
    given = {name: value for name, value in given.items() if name != "masks"}
    made.zero_grad()
    with attention.packed(made.model.language_model), Products() as counter:
        loss = made(**given, use_cache=False).loss
        loss.backward()
    return loss.detach(), {id(p): p.grad.clone() for p in made.parameters() if p.grad is not None}, counter.calls


@pytest.mark.parametrize("case", CASES)
def test_joined_linears_learn_what_they_learn_apart_in_fewer_products(tmp_path, case):
    made, given = model(**CASES[case]), rows_of(list(several(tmp_path, 5)))
    alone = learned(made, given)
    with joined(made.model.language_model):
        together = learned(made, given)
    torch.testing.assert_close(together[0], alone[0], atol=1e-6, rtol=0)
    assert together[1].keys() == alone[1].keys() and len(alone[1]) >= 16
    for key, gradient in alone[1].items():
        torch.testing.assert_close(together[1][key], gradient, atol=1e-6, rtol=1e-4)
    assert together[2] < alone[2]


def test_the_weights_are_views_of_the_joined_ones_and_the_linears_are_there_again(tmp_path):
    made = model()
    language = made.model.language_model
    before, values = dict(language.named_modules()), copy.deepcopy(language.state_dict())
    with joined(language):
        part = language.layers[0].self_attn.q_proj
        assert isinstance(part, Joined) and isinstance(language.layers[0].self_attn.v_proj, Later)
        own = before["layers.0.self_attn.v_proj"].base_layer.weight
        assert own.untyped_storage().data_ptr() == part.weight.untyped_storage().data_ptr()
        assert torch.equal(own, part.weight[-len(own) :])
    assert dict(language.named_modules()) == before
    for name, value in language.state_dict().items():
        assert torch.equal(value, values[name]), name


def test_what_trains_or_is_of_another_type_is_left_alone():
    made = model()
    layer = made.model.language_model.layers[0]
    layer.self_attn.k_proj.weight.requires_grad_(True)
    layer.mlp.up_proj.base_layer.weight.data = layer.mlp.up_proj.base_layer.weight.data.bfloat16()
    with joined(made.model.language_model):
        found = [isinstance(part, Joined) for part in (layer.self_attn.q_proj, layer.mlp.gate_proj, layer.mlp.down_proj)]
    assert found == [False, False, True]


@pytest.mark.slow
def test_a_training_on_rows_joins_and_ends_with_the_parameters_it_began_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made, seen = model(**PLAIN), []
    before = {name: value.detach().clone() for name, value in made.named_parameters()}
    made.model.language_model.layers[0].register_forward_pre_hook(lambda layer, *_: seen.append(isinstance(layer.mlp.gate_proj, Joined)))
    loop.fit(made, several(tmp_path, 5), Collator(tiny.processor()), Optimisation(**ROWS), 0, "tiny")
    assert seen == [True] * 3
    after = dict(made.named_parameters())
    assert after.keys() == before.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {n for n, p in after.items() if p.requires_grad}


def errors(kind: str) -> list[float]:
    """How far the loss of compiled layers is from that of others, for a model and then one whose experts have other ranks."""
    found = []
    with tempfile.TemporaryDirectory() as aside:
        given = {name: value for name, value in rows_of(list(several(Path(aside), 5))).items() if name != "masks"}
        for ranks in ([2, 4], [1, 2]):
            made = model(expert_targets=list(EXPERT_TARGETS), expert_ranks=ranks)
            language = made.model.language_model
            with attention.packed(language), torch.no_grad():
                expected = made(**given, use_cache=False).loss
                with joined(language), compiled(made, backend=kind):
                    found.append(float((made(**given, use_cache=False).loss - expected).abs()))
    return found


@pytest.mark.slow
def test_a_second_model_in_a_process_is_not_given_the_first_one_s_graphs():
    assert max(apart("test_joined_training", "errors", "eager")) < 1e-6
