"""Experts and router: the routed model is its experts, one by one or mixed, and only the router learns which."""

import copy
import functools
import math
from pathlib import Path

import pytest
import tiny
import torch
from transformers import DynamicCache

from unimed.model import adapters, experts, weights
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.train import loop

CLOSE = {"atol": 1e-5, "rtol": 0}
"""One wide product adds up in another order than two narrow ones."""

ROUTED = [(level, choice) for level in ("sequence", "token") for choice in ("soft", "top1")]
RANKS = dict(zip(tiny.EXPERTS["experts"], tiny.EXPERTS["expert_ranks"], strict=True))
SCALINGS = dict(zip(tiny.EXPERTS["experts"], tiny.EXPERTS["expert_scalings"], strict=True))
TARGETS = {"vqa": tiny.TARGETS, "grounding": tiny.TARGETS[1:]}
"""One expert leaves a linear alone that the other stands beside."""


@pytest.fixture(scope="module")
def singles() -> dict[str, UniMedForConditionalGeneration]:
    """Copies of one model, each with the peft adapter of one expert."""
    made = {}
    for seed, name in enumerate(tiny.EXPERTS["experts"]):
        made[name] = copy.deepcopy(base())
        added = adapters.add(made[name].model.language_model, name, RANKS[name], SCALINGS[name], TARGETS[name])
        draw = torch.Generator().manual_seed(seed)
        parameters = dict(made[name].model.language_model.named_parameters())
        with torch.no_grad():
            for key in added:
                parameters[key].normal_(std=0.3, generator=draw)
    return made


@functools.cache
def base() -> UniMedForConditionalGeneration:
    """What all of them are beside their experts; only read."""
    return tiny.stirred()


def routed(singles, level: str, choice: str) -> UniMedForConditionalGeneration:
    model = tiny.fresh(**tiny.EXPERTS, router_level=level, router_choice=choice)
    weights.load(model, base().state_dict(), Path("base"))
    stacked = experts.stack({name: adapters.taken(one.model.language_model, name).tensors for name, one in singles.items()}, model.config)
    weights.load(model.model.language_model, stacked, Path("experts"))
    return model


def routers(model) -> list[experts.Router]:
    return [module for module in model.modules() if isinstance(module, experts.Router)]


def inputs(*questions: str):
    questions = questions or ("<image>Is there a nodule? <region>", "<image>Which structure is marked? <region>")
    pictures = [tiny.marked(tiny.picture(seed), tiny.box(seed, 4, 9, 9)) for seed in range(len(questions))]
    return tiny.inputs(pictures, *tiny.ask(*questions))


@torch.no_grad()
def logits(model, given):
    return model(**given).logits[given["attention_mask"].bool()]


@pytest.mark.parametrize(("level", "choice"), ROUTED)
@pytest.mark.parametrize("name", RANKS)
def test_a_router_that_is_sure_gives_the_single_expert(singles, level, choice, name):
    model, given = routed(singles, level, choice), inputs()
    for router in routers(model):
        router.linear.bias.data = torch.tensor([1e4 if other == name else -1e4 for other in RANKS])
    expected = logits(singles[name], given)
    torch.testing.assert_close(logits(model, given), expected, **CLOSE)
    assert not torch.allclose(expected, logits(base(), given), atol=1e-2)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_an_undecided_router_gives_the_mean_of_what_the_experts_add(singles, level):
    model = routed(singles, level, "soft")
    logits(model, inputs())
    x = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(5))
    for path in ("layers.0.self_attn.q_proj", "layers.1.mlp.up_proj"):
        linear = model.model.language_model.get_submodule(path)
        linear.gates = linear.gates[:, :1]
        alone = [one.model.language_model.get_submodule(path)(x) for one in singles.values()]
        torch.testing.assert_close(linear(x), sum(alone) / 2, **CLOSE)


def test_zero_experts_change_nothing():
    given = inputs()
    model = tiny.fresh(**tiny.EXPERTS)
    weights.load(model, base().state_dict(), Path("base"))
    torch.testing.assert_close(logits(model, given), logits(base(), given), **CLOSE)


@pytest.mark.parametrize("choice", ["soft", "top1"])
def test_on_the_token_level_every_token_has_gates_of_its_own(singles, choice):
    model, given = routed(singles, "token", choice), inputs()
    for router in routers(model):
        torch.nn.init.normal_(router.linear.weight, generator=torch.Generator().manual_seed(2))
    logits(model, given)
    gates = model.model.language_model.layers[1].mlp.up_proj.gates
    assert gates.shape == (*given["input_ids"].shape, 6)
    assert len(gates[0].unique(dim=0)) > 1


def test_on_the_sequence_level_only_the_first_question_decides(singles):
    model = routed(singles, "sequence", "soft")
    for router in routers(model):
        torch.nn.init.normal_(router.linear.weight, generator=torch.Generator().manual_seed(2))
    words = tiny.processor()

    def first_layer_gates(question, answer, seed=0):
        said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        logits(model, tiny.inputs([tiny.picture(seed)], words.apply_chat_template(said)))
        return model.model.language_model.layers[0].mlp.up_proj.gates

    expected = first_layer_gates("<image>Is there a nodule?", "yes")
    torch.testing.assert_close(first_layer_gates("<image>Is there a nodule?", "It is there. no"), expected, **CLOSE)
    torch.testing.assert_close(first_layer_gates("<image>Is there a nodule?", "yes", seed=9), expected, **CLOSE)
    assert not torch.allclose(first_layer_gates("<image>Which structure is marked?", "yes"), expected, atol=1e-3)


def test_what_is_remembered_of_a_prompt_passes_no_gradient_to_its_router(singles):
    model, cache = routed(singles, "sequence", "soft"), DynamicCache()
    model(**inputs(), past_key_values=cache, use_cache=True)
    assert all(router.logits.requires_grad for router in routers(model))
    assert len(cache.expert_gates) == 2 and not any(gates.requires_grad for gates in cache.expert_gates.values())


def test_taking_the_best_expert_alone_still_teaches_the_router(singles):
    for level in ("sequence", "token"):
        model, given = routed(singles, level, "top1"), inputs()
        shares = routers(model)[0].chosen(torch.tensor([[[0.2, 0.1], [-1.0, 3.0]]]))
        torch.testing.assert_close(shares, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
        model(**given, labels=given["input_ids"]).loss.backward()
        assert all(router.linear.weight.grad.any() and router.linear.bias.grad.any() for router in routers(model))


@pytest.mark.parametrize(("level", "choice"), ROUTED)
def test_only_routers_learn_when_only_routers_are_named(singles, level, choice):
    model, given = routed(singles, level, choice), inputs()
    names = [f"model.language_model.layers.{number}.router" for number in range(2)]
    trained = loop.train_only(model, names)
    assert trained == [f"{name}.linear.{part}" for name in names for part in ("weight", "bias")]
    model(**given, labels=given["input_ids"]).loss.backward()
    assert {name for name, value in model.named_parameters() if value.grad is not None} == set(trained)


def test_stacked_experts_come_apart_as_they_were(singles):
    model = routed(singles, "sequence", "soft")
    found = experts.unstack(model.model.language_model.state_dict(), model.config)
    assert list(found) == list(RANKS)
    for name, one in singles.items():
        expected = adapters.taken(one.model.language_model, name).tensors
        assert expected.keys() <= found[name].keys()
        for key, value in found[name].items():
            assert torch.equal(value, expected.get(key, torch.zeros_like(value))), key


def test_an_adapter_stands_beside_a_routed_linear(singles):
    """Stage 5 puts one more adapter on the routed model; a fresh one changes nothing, a trained one does."""
    model, given = routed(singles, "sequence", "soft"), inputs()
    before = logits(model, given)
    added = adapters.add(model.model.language_model, "reasoner", 2, 1.0, tiny.TARGETS)
    assert len(added) == 2 * 2 * len(tiny.TARGETS)
    torch.testing.assert_close(logits(model, given), before, atol=0, rtol=0)
    with torch.no_grad():
        for key, value in model.model.language_model.named_parameters():
            if key in added:
                value.add_(0.1)
    assert not torch.allclose(logits(model, given), before, atol=1e-3)


def test_even_use_costs_one_and_a_single_expert_costs_their_number():
    even = torch.zeros(2, 6, 3)
    assert experts.balance_loss(even).item() == pytest.approx(1)
    assert experts.balance_loss(even + torch.tensor([1e4, 0, 0])).item() == pytest.approx(3)
    halves = torch.tensor([[[1e4, 0.0], [0.0, 1e4]]])
    assert experts.balance_loss(halves).item() == pytest.approx(1)
    opposite = torch.tensor([[[1e4, 0.0]], [[0.0, 1e4]]])
    assert experts.balance_loss(opposite).item() == pytest.approx(2), "each layer must be even by itself"
    quarter = torch.tensor([[[math.log(3), 0.0]]])
    assert experts.balance_loss(quarter).item() == pytest.approx(2 * (0.75**2 + 0.25**2))


def test_the_z_loss_is_the_squared_log_of_the_summed_exponentials():
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]]])
    assert experts.z_loss(logits).item() == pytest.approx((math.log(2) ** 2 + math.log(4) ** 2) / 2)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_decisions_are_those_of_the_rows_on_their_own_so_padding_weighs_nothing(singles, level):
    model, questions = routed(singles, level, "soft"), ("<image>Is it?", "<image>Which structure is marked, and is there a nodule?")
    for router in routers(model):
        torch.nn.init.normal_(router.linear.weight, generator=torch.Generator().manual_seed(2))

    def decided(given):
        logits(model, given)
        return experts.take_decisions(model, given["attention_mask"].bool())

    pictures, texts = [tiny.picture(seed) for seed in range(2)], tiny.ask(*questions)
    together, apart = tiny.inputs(pictures, *texts), [tiny.inputs([shown], text) for shown, text in zip(pictures, texts, strict=True)]
    expected = torch.cat([decided(given) for given in apart], 1)
    assert (together["attention_mask"] == 0).any()
    assert expected.shape[1] == (2 if level == "sequence" else together["attention_mask"].sum())
    torch.testing.assert_close(decided(together), expected, **CLOSE)


def test_decisions_can_be_taken_once(singles):
    model, given = routed(singles, "token", "soft"), inputs()
    mask = given["attention_mask"].bool()
    logits(model, given)
    experts.take_decisions(model, mask)
    with pytest.raises(RuntimeError, match="expected every router to have decided since its logits were taken, found nothing in layer 0"):
        experts.take_decisions(model, mask)


def test_a_copied_model_routes_by_its_own_routers(singles):
    model, given = routed(singles, "sequence", "soft"), inputs()
    other = copy.deepcopy(model)
    for router in routers(other):
        router.linear.bias.data = torch.tensor([1e4, -1e4])
    torch.testing.assert_close(logits(other, given), logits(singles["vqa"], given), **CLOSE)
    assert not torch.allclose(logits(model, given), logits(other, given), atol=1e-3)
