"""The package flash-attn-4: refused where it cannot be used, called as it is, and the same attention where there is a GPU for it."""

import sys

import pytest
import tiny
import torch
from problems import settings as rewarded
from pydantic import ValidationError
from test_loop import several
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface

from unimed.config import Optimisation
from unimed.errors import InputError
from unimed.model import attention, flash_attention_4
from unimed.train import loop
from unimed.train.batch import Collator

ROWS = {"row_tokens": 400, "batch_size": 2, "max_steps": 4, "learning_rate": 0.01, "dtype": "bfloat16"}
ENDS = [0, 130, 131, 300, 512]


def test_a_run_without_such_a_gpu_is_refused():
    with pytest.raises(InputError, match=r"^params.yaml: flash_attn needs a GPU of compute capability 9 or more, found cpu; "):
        flash_attention_4.require(torch.device("cpu"))


def test_a_training_is_refused_before_its_model_is_touched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny.fresh()
    with pytest.raises(InputError, match="flash_attn needs a GPU"):
        loop.fit(model, several(tmp_path, 2), Collator(tiny.processor()), Optimisation(**ROWS, flash_attn=True), 0, "tiny")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_run_without_the_package_is_told_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as if it were not there, on a machine that has it, too
    with pytest.raises(InputError, match=r"^params.yaml: flash_attn needs the package flash-attn-4, found .*'\.\[flash\]'"):
        flash_attention_4.kernels()


@pytest.mark.parametrize("change", [{"row_tokens": None}, {"dtype": "float32"}])
def test_it_is_for_packed_rows_in_half_precision(change):
    assert Optimisation(**ROWS, flash_attn=True).flash_attn
    with pytest.raises(ValidationError, match="flash_attn needs row_tokens and dtype bfloat16"):
        Optimisation(**ROWS | change, flash_attn=True)


def test_rewarded_answers_which_are_not_packed_cannot_have_it():
    with pytest.raises(ValidationError, match="flash_attn needs row_tokens"):
        rewarded(flash_attn=True, dtype="bfloat16")


def test_packed_rows_go_to_the_kernel_that_was_chosen_while_the_block_runs():
    language = tiny.fresh().model.language_model
    before = language.config._attn_implementation
    for package, name in ((False, attention.NAME), (True, attention.BY_PACKAGE)):
        with attention.packed(language, package):
            assert language.config._attn_implementation == name
        assert language.config._attn_implementation == before
    chosen = AttentionInterface()
    assert chosen[attention.NAME] is attention.attend
    assert (chosen[attention.BY_PACKAGE].func, chosen[attention.BY_PACKAGE].keywords) == (attention.attend, {"package": True})


def given(device: str, heads: int, groups: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(ENDS[-1], heads, 128), (ENDS[-1], groups, 128), (ENDS[-1], groups, 128)]
    return [torch.randn(*shape, device=device, dtype=torch.bfloat16) for shape in shapes]


@pytest.mark.parametrize("package", [False, True])
def test_what_a_compiler_is_told_of_states_and_gradients_has_their_shapes(package):
    with FakeTensorMode():
        sides = [side.requires_grad_() for side in given("cpu", 8, 2)]
        bounds, extent = torch.empty(6, dtype=torch.int32), torch.empty(2, dtype=torch.int64)
        states, lse = attention.varlen(*sides, bounds, extent, 0.1, package)
        states.sum().backward()
    assert (states.shape, lse.shape, lse.dtype) == (sides[0].shape, (8, ENDS[-1]), torch.float32)
    assert [side.grad.shape for side in sides if side.grad is not None] == [side.shape for side in sides]


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (8, 2)])
def test_the_package_takes_what_it_is_given(monkeypatch, heads, groups):
    """It compiles its kernels for a Hopper GPU that is not there, as it does on a machine without one."""
    monkeypatch.setenv("FLASH_ATTENTION_ARCH", "sm_90a")
    monkeypatch.setenv("CUTE_DSL_ARCH", "sm_90a")
    monkeypatch.setenv("FLASH_ATTENTION_NUM_SMS", "132")
    pytest.importorskip("flash_attn.cute.interface")
    with FakeTensorMode():
        query, key, value = given("cuda", heads, groups)
        ends = torch.empty(len(ENDS), device="cuda", dtype=torch.int32)
        states, lse = flash_attention_4.forward(query, key, value, ends, 212, 0.1)
        found = flash_attention_4.backward(states, query, key, value, states, lse, ends, 212, 0.1)
    assert (states.shape, lse.shape, lse.dtype) == (query.shape, (heads, ENDS[-1]), torch.float32)
    assert [one.shape for one in found] == [query.shape, key.shape, value.shape]


HAS_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= flash_attention_4.CAPABILITY


@pytest.mark.skipif(not HAS_GPU, reason="needs a Hopper or Blackwell GPU")
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (8, 2)])
def test_states_and_gradients_are_those_of_torchs_kernel(heads, groups):
    pytest.importorskip("flash_attn.cute.interface")
    found: dict[bool, list[torch.Tensor]] = {}
    bounds = torch.tensor([*ENDS, ENDS[-1]], dtype=torch.int32, device="cuda")
    extent = torch.tensor([len(ENDS) - 1, 212])
    for package in (False, True):
        sides = [side.requires_grad_() for side in given("cuda", heads, groups)]
        states, lse = attention.varlen(*sides, bounds, extent, 128**-0.5, package)
        states.backward(torch.ones_like(states) * torch.linspace(-1, 1, 128, device="cuda", dtype=torch.bfloat16))
        found[package] = [states.detach(), lse.detach(), *(side.grad for side in sides if side.grad is not None)]
    assert len(found[True]) == 5
    for own, other in zip(found[True], found[False], strict=True):
        assert (own.float() - other.float()).norm() / other.float().norm() < 0.005
