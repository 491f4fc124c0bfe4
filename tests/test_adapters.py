"""Adapters on disk: peft reads what we write, we read what peft writes, and nothing else is let in."""

import dataclasses
import json

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from unimed.errors import InputError
from unimed.model import adapters


def language_model():
    return tiny.stirred().model.language_model


def trained(rank=3, scaling=2.0, targets=tiny.TARGETS):
    """A language model with an adapter whose tensors were moved at random, and the adapter."""
    model = language_model()
    added = adapters.add(model, "vqa", rank, scaling, targets)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key in added:
                value.normal_(std=0.3, generator=draw)
    return model, adapters.taken(model, "vqa")


@torch.no_grad()
def states(model):
    return model(input_ids=torch.arange(5, 15)[None]).last_hidden_state


def same(found, expected):
    torch.testing.assert_close(found.tensors, expected.tensors, atol=0, rtol=0)
    assert (found.rank, found.scaling, sorted(found.targets)) == (expected.rank, expected.scaling, sorted(expected.targets))


def test_a_fresh_adapter_changes_nothing_and_trains_alone():
    model = language_model()
    before = states(model)
    added = adapters.add(model, "vqa", 3, 2.0, ("q_proj", "down_proj"))
    assert torch.equal(states(model), before)
    assert added == [name for name, value in model.named_parameters() if value.requires_grad]
    assert len(added) == 2 * 2 * 2


def test_an_adapter_is_in_single_precision_beside_linears_in_half():
    model = language_model().bfloat16()
    added = adapters.add(model, "vqa", 3, 2.0, tiny.TARGETS)
    assert {name: value.dtype for name, value in model.named_parameters()} == {
        name: torch.float32 if name in added else torch.bfloat16 for name, _ in model.named_parameters()
    }


def test_peft_reads_what_we_write(tmp_path):
    model, adapter = trained()
    adapters.write(tmp_path, adapter)
    found = PeftModel.from_pretrained(language_model(), tmp_path)
    assert torch.equal(states(found), states(model))
    assert not torch.allclose(states(found), states(language_model()), atol=1e-2)


def test_we_read_what_peft_writes(tmp_path):
    model = get_peft_model(language_model(), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.add_(0.2)
    model.save_pretrained(tmp_path)
    read, plain = adapters.read(tmp_path), language_model()
    assert (read.rank, read.scaling, set(read.targets)) == (3, 2.0, {"q_proj", "up_proj"})
    adapters.load(plain, "vqa", read)
    assert torch.equal(states(plain), states(model))


@pytest.mark.parametrize(("rank", "scaling"), [(3, 2.0), (4, 0.5), (4, 1.25)])
def test_an_adapter_comes_back_as_it_was_stored(tmp_path, rank, scaling):
    model, adapter = trained(rank, scaling)
    assert (adapter.rank, adapter.scaling, sorted(adapter.targets)) == (rank, scaling, sorted(tiny.TARGETS))
    adapters.write(tmp_path, adapter)
    read, plain = adapters.read(tmp_path), language_model()
    same(read, adapter)
    adapters.load(plain, "other", read)
    assert torch.equal(states(plain), states(model))
    same(adapters.taken(plain, "other"), adapter)


def test_the_same_adapter_is_stored_as_the_same_bytes(tmp_path):
    _, adapter = trained()
    for name in ("a", "b"):
        adapters.write(tmp_path / name, adapter)
    for file in (adapters.WEIGHTS, adapters.CONFIG):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def _lack(tensors):
    del tensors["base_model.model.layers.0.self_attn.q_proj.lora_A.weight"]


def _add(tensors):
    tensors["base_model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(3, 32)


def _bend(tensors):
    tensors["base_model.model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(3, 31)


@pytest.mark.parametrize(
    ("harm", "named"), [(_lack, "layers.0.self_attn.q_proj.lora_A"), (_add, "layers.7.self_attn"), (_bend, r"lora_A.*\(3, 31\)")]
)
def test_an_adapter_of_another_model_is_refused_by_name(tmp_path, harm, named):
    _, adapter = trained()
    adapters.write(tmp_path, adapter)
    tensors = load_file(tmp_path / adapters.WEIGHTS)
    harm(tensors)
    save_file(tensors, tmp_path / adapters.WEIGHTS)
    with pytest.raises(InputError, match=named):
        adapters.load(language_model(), "vqa", adapters.read(tmp_path))


@pytest.mark.parametrize(
    "change",
    [{"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"q": 9}}, {"alpha_pattern": {"q": 9}}, {"target_modules": ".*proj"}],
)
def test_an_adapter_that_is_more_than_a_plain_lora_is_refused(tmp_path, change):
    _, adapter = trained()
    adapters.write(tmp_path, adapter)
    file = tmp_path / adapters.CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=f"expected a plain LoRA, found .*{next(iter(change))}"):
        adapters.read(tmp_path)


@pytest.mark.parametrize(
    "text", ["no JSON", "[]", '{"peft_type": "PROMPT_TUNING"}', '{"r": 0, "lora_alpha": 1}', '{"r": "8", "lora_alpha": 1}']
)
def test_settings_of_something_else_than_a_lora_are_refused_in_one_sentence(tmp_path, text):
    adapters.write(tmp_path, trained()[1])
    (tmp_path / adapters.CONFIG).write_text(text)
    with pytest.raises(InputError, match=r"adapter_config.json: expected settings of a LoRA in JSON, with r and lora_alpha above 0"):
        adapters.read(tmp_path)


def test_an_adapter_can_be_given_another_s_values():
    model, before = trained()
    other = dataclasses.replace(before, tensors={key: value + 1 for key, value in before.tensors.items()})
    adapters.replace(model, "vqa", other)
    same(adapters.taken(model, "vqa"), other)


def test_a_scaling_that_peft_cannot_write_is_refused():
    with pytest.raises(InputError, match="whole number, found 3 times 0.5"):
        adapters.add(language_model(), "vqa", 3, 0.5, tiny.TARGETS)


def test_a_missing_adapter_is_an_error_with_its_place(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        adapters.read(tmp_path)
