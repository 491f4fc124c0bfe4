"""Linears that are joined give what they give apart, adapters, gates and biases included, and are there again afterwards."""

import pytest
import tiny
import torch
from problems import CLOSE, with_stirred_reasoner
from transformers import LlamaConfig

from unimed.model.assemble import EXPERT_TARGETS
from unimed.model.experts import Routed, RoutedLinear
from unimed.rl.joined import TOGETHER, Joined, joined

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "attention_bias": True,
}  # fmt: skip


def drawn(**changes):
    """A language model with every parameter away from zero."""
    text = LlamaConfig(**SIZES | {"vocab_size": len(tiny.processor().tokenizer)})
    made = with_stirred_reasoner(tiny.stirred(**tiny.EXPERTS | {"text_config": text} | changes))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    return made.model.language_model


@torch.no_grad()
def outputs(language):
    """What each linear of the first layer makes of an input, in the order of their calls, with gates set as its router's hook does."""
    layer, draw, found = language.layers[0], torch.Generator().manual_seed(5), []
    gates = torch.rand(5, 1, sum(tiny.EXPERTS["expert_ranks"]), generator=draw)
    for part in layer.modules():
        if isinstance(part, Routed) and hasattr(layer, "router"):
            part.gates = gates
    for parent, names in TOGETHER:
        part = getattr(layer, parent)
        hidden = torch.randn(5, 1, 48 if names == ("down_proj",) else 32, generator=draw)
        found += [getattr(part, name)(hidden) for name in names]
    return found


PLAIN = {"experts": [], "expert_ranks": [], "expert_scalings": []}


@pytest.mark.parametrize(
    ("changes", "routed"),
    [({"expert_targets": list(EXPERT_TARGETS)}, 14), (PLAIN, 0), ({"expert_targets": ["k_proj", "up_proj"]}, 4)],
    ids=["routed", "plain", "routed in part"],
)
def test_joined_linears_give_what_they_give_apart(changes, routed):
    language = drawn(**changes)
    assert sum(isinstance(part, RoutedLinear) for part in language.modules()) == routed
    expected = outputs(language)
    with joined(language):
        found = outputs(language)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def broken(language, seen):
    """Joins, notes what is there and fails: nothing has been made for the place that is asked first."""
    with joined(language):
        seen += [part for part in language.layers[1].modules() if isinstance(part, Joined)]
        language.layers[0].mlp.up_proj(torch.zeros(1))


def test_four_products_stand_for_seven_and_the_seven_are_there_again_even_after_an_error():
    language = drawn()
    before = dict(language.named_modules())
    seen = []
    with pytest.raises(ValueError, match="unpack"):
        broken(language, seen)
    assert len(seen) == 4
    assert dict(language.named_modules()) == before


def test_a_layer_with_other_names_is_left_alone():
    language = drawn()
    layer = language.layers[0]
    layer.mlp.gate_up_proj = layer.mlp.gate_proj
    del layer.mlp.gate_proj
    with joined(language):
        assert not isinstance(layer.mlp.gate_up_proj, Joined)
        assert not isinstance(layer.mlp.up_proj, Joined)
        assert isinstance(layer.mlp.down_proj, Joined)


def test_copies_are_in_the_linears_type_and_have_no_gradient():
    language = drawn()
    for name, parameter in language.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    with joined(language):
        made = [part for part in language.modules() if isinstance(part, Joined)]
        assert {tensor.dtype for part in made for tensor in (part.weight, part.second, part.bias) if tensor is not None} == {torch.bfloat16}
        assert not any(parameter.requires_grad for part in made for parameter in part.buffers())
