"""Training in bfloat16 loses nothing that float32 would keep."""

import pytest
import tiny
import torch
from test_loop import several

from unimed.config import Optimisation
from unimed.model import assemble
from unimed.train import loop
from unimed.train.batch import Collator
from unimed.train.masters import MasterAdamW

ROWS = {"row_tokens": 400, "batch_size": 1, "max_steps": 3, "learning_rate": 0.01, "warmup_steps": 0}


def test_steps_too_small_for_bfloat16_add_up_in_the_copies():
    trained = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = MasterAdamW([trained], 1e-4)
    for _ in range(50):
        trained.grad = torch.ones_like(trained)
        optimizer.step()
    assert trained[0] == 0.99609375  # 1 - 50 * 0.0001 = 0.995 in bfloat16's steps of 1/256
    optimizer.hand_over()
    torch.testing.assert_close(trained.data, torch.full((3,), 0.995), atol=1e-5, rtol=0)


def test_a_run_goes_on_from_a_stored_state_bit_by_bit():
    def run(steps, state=None):
        trained = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        optimizer = MasterAdamW([trained], 1e-3)
        if state:
            optimizer.load_state_dict(state)
        for step in range(steps):
            trained.grad = torch.tensor([1.0, -0.5, 0.1 * step], dtype=torch.bfloat16)
            optimizer.step()
        return trained, optimizer

    _, whole = run(3)
    _, half = run(2)
    trained, rest = run(0, half.state_dict())
    assert torch.equal(trained, half.trained[0])
    trained.grad = torch.tensor([1.0, -0.5, 0.2], dtype=torch.bfloat16)
    rest.step()
    assert torch.equal(rest.masters[0], whole.masters[0])


def test_what_has_no_gradient_in_a_step_stays_as_it_is():
    """Not even by what it learned from the gradient before."""
    one, other = (torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = MasterAdamW([one, other], 0.1)
    for parameters in ([one, other], [one]):
        optimizer.zero_grad()
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    torch.testing.assert_close(optimizer.masters[0].data, torch.full((3,), 0.8), atol=1e-5, rtol=0)
    torch.testing.assert_close(optimizer.masters[1].data, torch.full((3,), 0.9), atol=1e-5, rtol=0)
    assert other.tolist() == [0.8984375] * 3  # 0.9 in bfloat16's steps of 1/256


@pytest.mark.slow
def test_training_in_bfloat16_moves_what_trains_and_leaves_it_float32(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = tiny.stirred()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    trained = loop.train_only(made, assemble.ALIGNED)
    loop.fit(made, several(tmp_path, 8), Collator(tiny.processor()), Optimisation(**ROWS, dtype="bfloat16"), 0, "tiny")
    state = made.state_dict()
    moved = {name for name, value in state.items() if not torch.equal(value, before[name].to(torch.bfloat16).to(value.dtype))}
    assert moved == set(trained)
    assert {name for name, value in made.named_parameters() if value.dtype == torch.float32} == set(trained)
    assert made.model.language_model.config._attn_implementation == "sdpa"
