"""The numbers of stage 5 in params.yaml are those that TRL goes by."""

import pytest
import tiny
import torch
from problems import absent, built, generated, problem, settings, with_stirred_reasoner

from unimed.rl import trainer


@pytest.fixture
def model():
    return with_stirred_reasoner(tiny.stirred(**tiny.EXPERTS, router_level="sequence"))


@pytest.mark.parametrize(
    ("normalise", "divisor"),
    [
        ("none", [1.0] * 8),
        ("group", [(1 / 3) ** 0.5] * 4 + [0.2] * 4),  # squares of deviations add up to 1 and to 0.12 over 3 answers
        ("batch", [(1.44 / 7) ** 0.5] * 8),  # of all from their mean, 0.3
    ],
)
def test_an_advantage_is_what_an_answer_earns_beyond_its_siblings_by_the_spread_of_whom_params_name(tmp_path, model, normalise, divisor):
    earned, beyond = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.4], [-0.5, -0.5, 0.5, 0.5, -0.1, -0.1, -0.1, 0.3]
    with built(model, [problem(tmp_path)], normalise=normalise) as policy:
        policy.reward_funcs = [lambda value=value, **_: value for value in (earned, [None] * 8, [None] * 8)]
        found = generated(policy)["advantages"]
    torch.testing.assert_close(found, torch.tensor(beyond) / torch.tensor(divisor), atol=2e-3, rtol=0)


def test_steps_begin_as_small_as_the_warm_up_says(tmp_path, model):
    history = trainer.reinforce(model, tiny.processor(), [absent(tmp_path)], [], settings(max_steps=3, warmup_steps=2), seed=0)
    assert [entry["learning_rate"] for entry in history] == pytest.approx([0.0, 5e-3, 1e-2])


def test_placeholders_are_never_said_however_likely(tmp_path, model):
    placeholders = [model.config.image_token_id, model.config.region_token_id]
    inputs = tiny.inputs([tiny.picture(0)], *tiny.ask("<image>Segment the spleen."))
    with torch.no_grad():
        model.lm_head.weight[placeholders] = 100 * model.model(**inputs).last_hidden_state[0, -1]
    with built(model, [absent(tmp_path)]) as policy:
        assert not torch.isin(generated(policy)["completion_ids"], torch.tensor(placeholders)).any()
