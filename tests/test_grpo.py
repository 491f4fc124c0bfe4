"""Stage 5: what TRL is fed, what it computes from it, and that rewards move the policy."""

import logging
import math

import pytest
import tiny
import torch
from problems import (
    CLOSE,
    OPTIMISATION,
    QUESTION,
    absent,
    answered,
    babbling,
    built,
    generated,
    marked,
    plain,
    pointing,
    problem,
    settings,
    with_reasoner,
    with_stirred_reasoner,
)

from unimed.data.records import SEG
from unimed.errors import InputError
from unimed.rl import prompts, trainer
from unimed.rl.policy import without_spread


@pytest.fixture
def model():
    """A routed model whose reasoner, alone, trains; its routers and adapters are far from zero."""
    return with_stirred_reasoner(tiny.stirred(**tiny.EXPERTS, router_level="sequence"))


def test_the_request_to_reason_stands_on_its_own_line_and_a_thought_comes_before_the_answer(tmp_path):
    sample, mask = problem(tmp_path), pointing(tmp_path)
    text = f"{QUESTION}\nReason in <think></think>, then answer in <answer></answer>."
    [message] = prompts.reasoning_messages(sample, think=True)
    assert message["content"][1]["text"] == text
    assert prompts.reasoning_messages(sample, think=False)[0]["content"][1]["text"] == QUESTION
    assert prompts.reasoning_messages(mask, think=True)[0]["content"][1]["text"] == "Segment the liver."
    thought, direct = (prompts.taught(sample, think).turns[0] for think in (True, False))
    assert (thought.question, thought.answer) == (text, "<think> It is there.</think><answer> yes</answer>")
    assert (direct.question, direct.answer) == (QUESTION, " yes")
    assert prompts.taught(mask, think=True) == mask


def test_both_image_branches_and_the_regions_get_pixels_in_the_gradient_pass(tmp_path, model):
    sample, seen = marked(tmp_path), []

    def spy(name):
        return lambda module, args, kwargs: seen.append((name, torch.is_grad_enabled(), kwargs.get("pixel_values", *args[:1])))

    entries = {"vit": model.model.encoder.vision.embeddings, "detail": model.model.encoder.detail.embeddings, "backbone": model.model}
    for name, module in entries.items():
        module.register_forward_pre_hook(spy(name), with_kwargs=True)
    trainer.reinforce(model, tiny.processor(), [sample], [], settings(), seed=0)
    in_training = [(name, tensor) for name, with_grad, tensor in seen if with_grad and tensor is not None]
    assert sorted(name for name, _ in in_training) == ["backbone", "backbone", "detail", "detail", "vit", "vit"], "each once in two steps"
    seen.clear()
    inputs = tiny.inputs([tiny.marked(sample.load_image(), *sample.turns[0].regions)], *tiny.ask("<image> <region>"))
    model(**inputs)
    assert inputs["pixel_values"][:, 3:].any()
    expected = {name: tensor[0] for name, _, tensor in seen}
    assert expected["detail"].shape[-1] == 2 * expected["vit"].shape[-1]
    for name, tensor in in_training:
        assert all(torch.equal(row, expected[name]) for row in tensor), name


def test_trl_computes_the_log_probabilities_of_a_full_forward(tmp_path, model):
    samples = [marked(tmp_path), problem(tmp_path), pointing(tmp_path)]
    ids, mask, pixels, length = answered(samples, [0, 1, 0, 2], f"yes{SEG}no {SEG} {SEG}yes It")
    counted = mask[:, -length:].bool()
    with built(model, samples) as policy:

        def computed(pixel_values):
            found = policy._get_per_token_logps_and_entropies(model, ids, mask, length, pixel_values=pixel_values, num_images=[1, 1, 1, 1])
            return found[0].where(counted, 0)

        found = computed(pixels)
        for channels in (slice(0, 3), slice(3, 4)):
            other = pixels.clone()
            other[:1, channels] = other[:1, channels].flip(-1)
            changed = (computed(other) - found).abs().amax(1)
            assert changed[0] > 1e-4
            assert changed[1:].max() < 1e-5
    logits = model(ids, attention_mask=mask, pixel_values=pixels).logits[:, -length - 1 : -1] / 0.7
    expected = logits.log_softmax(-1).gather(2, ids[:, -length:].unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(found, expected.where(counted, 0), **CLOSE)


@pytest.mark.parametrize("normalise", ["each_reward", "group"])
def test_siblings_that_earn_the_same_have_no_advantage_and_their_share_is_logged(tmp_path, model, normalise):
    def earn(*earned):
        policy.reward_funcs = [lambda value=value, **_: value for value in ([1.0] * 8, list(earned), [None] * 8)]
        policy._metrics["train"].clear()
        return generated(policy)["advantages"], policy._metrics["train"]["groups_without_spread"]

    equal = 307 / 1024
    with built(model, [problem(tmp_path)], normalise=normalise) as policy:
        advantages, share = earn(*[equal] * 4, 0.0, 1.0, 1.0, 1.0)
        assert advantages[:4].abs().max() < 1e-6
        assert advantages[4] < -0.5 < 0.1 < advantages[5:].min()
        assert share == [0.5]
        advantages, share = earn(*[equal] * 4, *[0.5] * 4)
        assert not advantages.any()
        assert share == [1.0]


def test_rewards_of_equal_sum_have_a_spread_and_each_has_its_own_weight(tmp_path, model):
    none = math.nan
    earned = torch.tensor([[1.0, 0.0, none], [0.0, 1.0, none], [none, none, 0.5], [none, none, 0.5]])
    assert without_spread(earned, 2).tolist() == [False, True]
    with built(model, [problem(tmp_path)], format_weight=0.5, answer_weight=2.0, mask_weight=3.0) as policy:
        weights = dict(zip(policy.reward_func_names, policy.reward_weights.tolist(), strict=True))
    assert weights == {"format_reward": 0.5, "answer_reward": 2.0, "mask_reward": 3.0}


def test_a_last_rollout_that_is_used_less_has_prompts_of_its_own_too(tmp_path, model):
    with built(model, [problem(tmp_path), absent(tmp_path)], max_steps=3, updates_per_rollout=2) as policy:
        assert len(policy.train_dataset) == 2 * 2


def test_mask_prompts_do_not_weigh_on_problems_and_the_other_way_round(tmp_path, model):
    with built(model, [problem(tmp_path), pointing(tmp_path)]) as policy:
        policy.reward_funcs = [
            lambda sample, **_: [float(n % 2) if s.turns[-1].options else None for n, s in enumerate(sample)],
            lambda sample, **_: [1.0 if s.turns[-1].options else None for s in sample],
            lambda sample, **_: [None if s.turns[-1].options else n % 2 / 8 for n, s in enumerate(sample)],
        ]
        advantages = generated(policy)["advantages"].view(2, 4)
    for group in advantages:
        torch.testing.assert_close(group, torch.tensor([-1.0, 1.0, -1.0, 1.0]) * group[1], atol=1e-2, rtol=0)
        assert group[1] > 0.5


def test_only_the_reasoner_moves_and_every_step_is_in_the_history(tmp_path, model):
    babbling(model).write_seg_rows()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = [problem(tmp_path), marked(tmp_path)], [pointing(tmp_path), absent(tmp_path)]
    history = trainer.reinforce(model, tiny.processor(), *found, settings(max_steps=4), seed=0)
    after = model.state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".reasoner." in name for name in moved)
    assert "forward" not in vars(model)
    assert not model.training
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]
    named = {"loss", "reward", "groups_without_spread", "entropy", "completions/mean_length", "clip_ratio/high_mean"}
    assert all(named <= entry.keys() for entry in history)
    assert not any("step_time" in entry for entry in history), "the same training leaves the same bytes"
    assert all(isinstance(value, (int, float)) for entry in history for value in entry.values())
    assert {"rewards/format_reward/mean", "rewards/answer_reward/mean", "rewards/mask_reward/mean"} <= {
        key for entry in history for key in entry
    }


def test_a_step_of_rewards_that_is_no_number_is_skipped_or_ends_the_run(tmp_path, model):
    """The pull is nothing at the first step, where the policy is its reference; its gradient has no place in float32 at the second."""
    begun = {name: value.clone() for name, value in babbling(model).state_dict().items()}

    def run(**changes):
        model.load_state_dict(begun)
        return trainer.reinforce(model, tiny.processor(), [absent(tmp_path)], [], settings(**changes), seed=0)

    run(max_steps=1, kl_weight=1e32)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    assert any(not torch.equal(first[name], begun[name]) for name in begun)
    history = run(max_steps=3, kl_weight=1e32, failures={"not_finite": "skip", "most_skipped": 2})
    assert [entry["not_finite"] for entry in history] == [0, 1, 2]
    assert all(math.isfinite(value) for entry in history for value in entry.values())
    torch.testing.assert_close(model.state_dict(), first, atol=0, rtol=0)
    with pytest.raises(FloatingPointError, match=r"at step 1, found \{'loss': .*, 'gradient': inf\} for the samples image3"):
        run(max_steps=3, kl_weight=1e32)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(tmp_path):
    histories = []
    for _ in range(2):
        model = tiny.stirred(**tiny.EXPERTS)
        with_reasoner(model)
        histories.append(trainer.reinforce(model, tiny.processor(), [problem(tmp_path)], [pointing(tmp_path)], settings(), seed=3))
    assert [(entry["loss"], entry["entropy"]) for entry in histories[0]] == [(entry["loss"], entry["entropy"]) for entry in histories[1]]


def test_answers_are_used_again_and_the_reference_is_the_policy_at_the_start(tmp_path, model):
    changes = {"updates_per_rollout": 2, "kl_weight": 0.1, "max_steps": 4}
    history = trainer.reinforce(babbling(model), tiny.processor(), [absent(tmp_path)], [], settings(**changes), seed=0)
    assert ["reward" in entry for entry in history] == [True, False, True, False]
    assert history[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert all(entry["kl"] > 1e-6 for entry in history[1:])


def test_without_a_rationale_there_is_no_cold_start_and_one_line_says_so(tmp_path, model, caplog):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="grpo"):
        samples = [problem(tmp_path, rationale="")], [], [pointing(tmp_path)]
        history = trainer.cold_start(model, tiny.processor(), *samples, settings(), seed=0)
    assert history == []
    assert [record.getMessage() for record in caplog.records] == ["no cold start: none of 1 problems has a rationale"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_a_cold_start_teaches_thoughts_direct_answers_and_masks(tmp_path, model):
    start = OPTIMISATION | {"batch_size": 4, "max_steps": 30}
    samples = [problem(tmp_path), marked(tmp_path)], [plain(tmp_path)], [pointing(tmp_path)]
    history = trainer.cold_start(
        model, tiny.processor(), *samples, settings(cold_start=start, direct_share=0.25, vqa_share=0.1, grounding_share=0.25), seed=0
    )
    assert history[-1]["loss_words"] < 0.6 * history[0]["loss_words"]
    assert any("loss_dice" in entry for entry in history)


def test_no_problem_to_train_on_is_said_in_one_sentence(tmp_path, model):
    with pytest.raises(InputError, match="expected at least one training sample"):
        trainer.reinforce(model, tiny.processor(), [], [pointing(tmp_path)], settings(), seed=0)


@pytest.mark.slow
def test_rewards_raise_the_probability_of_what_they_reward(tmp_path):
    model = babbling(tiny.stirred(**tiny.EXPERTS))
    with_reasoner(model)
    inputs = tiny.inputs([absent(tmp_path).load_image()], *tiny.ask("<image>\nSegment the spleen."))

    def pointing_chance():
        with torch.no_grad():
            return model(**inputs).logits[0, -1].softmax(0)[model.config.seg_token_id].item()

    before = pointing_chance()
    changes = {"group_size": 8, "max_steps": 16, "temperature": 1.0}
    history = trainer.reinforce(model, tiny.processor(), [absent(tmp_path)], [], settings(**changes), seed=0)
    earned = [entry["rewards/mask_reward/mean"] for entry in history]
    assert before > 0.02
    assert pointing_chance() < before / 4
    assert sum(earned[-4:]) > sum(earned[:4])
