"""Answers that go through the layers in pieces make the step of all at once; in bfloat16 the step is not lost."""

import math

import pytest
import tiny
import torch
from problems import SETTINGS, absent, babbling, built, marked, pointing, problem, settings, with_stirred_reasoner
from pydantic import ValidationError

from unimed.rl import pieces, trainer
from unimed.rl.drawn import dataset
from unimed.train.draws import Draws
from unimed.train.mixture import Mixture

GROUPS = {"batch_size": 3, "grounding_share": 0.4}
BOTH = {"dtype": "bfloat16", "cold_start": SETTINGS["cold_start"] | {"dtype": "bfloat16"}}


def model(level="sequence"):
    return babbling(with_stirred_reasoner(tiny.stirred(**tiny.EXPERTS, router_level=level)))


def prepared(policy):
    """A shuffled batch whose answers earn differently, as each step gets it."""
    policy.current_gradient_accumulation_steps = 1  # transformers' loop says so
    policy.reward_funcs = [lambda sample, **_: [number % 3 / 2 for number in range(len(sample))]] * 3
    return policy._prepare_inputs(next(iter(policy.get_train_dataloader())))


def gradients(policy, batch, rows):
    """Loss and gradients of a batch with so many rows at once."""
    policy.model.zero_grad()
    policy.rows_at_once = rows
    loss = policy.compute_loss(policy.model, batch)
    loss.backward()
    policy.add_up()
    return loss.detach(), {name: value.grad.clone() for name, value in policy.model.named_parameters() if value.requires_grad}


def test_a_batch_is_cut_into_whole_groups_without_columns_of_padding():
    batch = {
        "prompt_ids": torch.tensor([[0, 5, 6], [1, 2, 3], [0, 5, 6], [1, 2, 3]]),
        "prompt_mask": torch.tensor([[0, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]]),
        "completion_ids": torch.tensor([[7, 0, 0], [7, 8, 9], [7, 8, 0], [9, 0, 0]]),
        "completion_mask": torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]]),
        "old_per_token_logps": torch.arange(12.0).view(4, 3),
        "ref_per_token_logps": torch.arange(12.0).view(4, 3),
        "advantages": torch.tensor([0.0, 1.0, 2.0, 3.0]),
        "num_images": [10, 11, 12, 13],
        "num_items_in_batch": torch.tensor(7),
        "group": torch.tensor([1, 0, 1, 0]),
    }
    first, second = pieces.cut(batch, 2)
    assert first["prompt_ids"].tolist() == [[1, 2, 3], [1, 2, 3]]
    assert first["completion_ids"].tolist() == [[7, 8, 9], [9, 0, 0]]
    assert (first["num_images"], first["advantages"].tolist()) == ([11, 13], [1.0, 3.0])
    assert second["prompt_ids"].tolist() == [[5, 6], [5, 6]]
    assert second["prompt_mask"].all()
    assert second["completion_mask"].tolist() == [[1, 0], [1, 1]]
    assert second["old_per_token_logps"].tolist() == second["ref_per_token_logps"].tolist() == [[0, 1], [6, 7]]
    assert first["num_items_in_batch"] == second["num_items_in_batch"] == 7
    assert [len(piece["group"]) for piece in pieces.cut(batch, 3)] == [3, 1]


def test_figures_of_a_whole_are_means_per_word_and_extremes_of_its_pieces():
    found = {"entropy": [1.0, 4.0], "clip_ratio/low_min": [0.5, 0.25], "clip_ratio/high_max": [0.5, 0.25]}
    assert pieces.whole(found, torch.tensor([2, 1])) == pytest.approx(
        {"entropy": 2.0, "clip_ratio/low_min": 0.25, "clip_ratio/high_max": 0.5}
    )


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_loss_gradients_and_figures_are_those_of_all_answers_at_once(tmp_path, level):
    """Of answers that a second update meets, under a pull toward the start: every term of the loss counts."""
    samples = [problem(tmp_path), marked(tmp_path), pointing(tmp_path)]
    with built(model(level), samples, updates_per_rollout=2, kl_weight=0.5, **GROUPS) as policy:
        batch = prepared(policy)
        assert batch["group"].tolist() != sorted(batch["group"].tolist()), "shuffled"
        with torch.no_grad():
            for name, value in policy.model.named_parameters():
                if ".lora_B." in name:
                    value.mul_(1.5)
        figures, found = [], []
        for rows in (None, 8, 4):
            policy._metrics["train"].clear()
            found.append(gradients(policy, batch, rows))
            figures.append(dict(policy._metrics["train"]))
    assert figures[0].keys() >= {"entropy", "kl", "clip_ratio/low_min", "clip_ratio/high_max", "clip_ratio/region_mean"}
    assert figures[0]["clip_ratio/region_mean"][0] > 0
    for (loss, grads), told in zip(found[1:], figures[1:], strict=True):
        torch.testing.assert_close(loss, found[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(grads, found[0][1], atol=1e-5, rtol=1e-4)
        for name, values in told.items():
            assert values == pytest.approx(figures[0][name], abs=1e-5), name


@pytest.mark.slow
def test_two_updates_in_pieces_leave_the_weights_and_the_log_of_two_at_once(tmp_path):
    def run(at_once):
        made = model()
        changes = {"groups_at_once": at_once, "updates_per_rollout": 2, "kl_weight": 0.1, "learning_rate": 1e-3}
        found = [problem(tmp_path), marked(tmp_path)], [pointing(tmp_path), absent(tmp_path)]
        history = trainer.reinforce(made, tiny.processor(), *found, settings(**changes, **GROUPS), seed=0)
        return made.state_dict(), history

    (weights, history), *others = map(run, (None, 1, 2))
    assert history[1]["grad_norm"] > 1e-3
    for own, told in others:
        torch.testing.assert_close(own, weights, atol=1e-4, rtol=0)
        assert [entry.keys() for entry in told] == [entry.keys() for entry in history]
        for entry, whole in zip(told, history, strict=True):
            assert entry == pytest.approx(whole, abs=1e-4)


def test_a_piece_reads_each_of_its_prompts_once_and_no_pass_has_more_rows(tmp_path):
    samples, seen, images = [problem(tmp_path), marked(tmp_path), pointing(tmp_path)], [], []
    with built(model(), samples, updates_per_rollout=2, kl_weight=0.5, groups_at_once=1, **GROUPS) as policy:
        made = policy.accelerator.unwrap_model(policy.model)
        generate = policy._generate
        language = made.model.language_model

        def rolled(*args):
            """A rollout is not looked at."""
            found = generate(*args)
            seen.clear()
            images.clear()
            return found

        policy._generate = rolled
        language.register_forward_pre_hook(lambda module, args, given: seen.append(given["inputs_embeds"].shape[:2]), with_kwargs=True)
        made.model.encoder.register_forward_pre_hook(lambda module, args: images.append(len(args[0])))
        batch = prepared(policy)
        assert [rows for rows, _ in seen] == [1, 4] * 6, "old and reference, three groups each"
        seen.clear()
        images.clear()
        policy.compute_loss(policy.model, batch).backward()
        prompts = [int(batch["prompt_mask"][batch["group"] == group].sum(1)[0]) for group in range(3)]
        words = [int(batch["completion_mask"][batch["group"] == group].sum(1).max()) for group in range(3)]
    assert len(set(prompts)) > 1
    assert images == [1, 1, 1]
    passes = [(rows, size) for sizes in zip(prompts, words, strict=True) for rows, size in zip((1, 4), sizes, strict=True)]
    assert [tuple(shape) for shape in seen] == passes


def test_steps_smaller_than_a_bfloat16_are_kept_and_what_trained_is_float32(tmp_path):
    made = model()
    start = {name: value.detach().bfloat16() for name, value in made.named_parameters() if value.requires_grad}
    trainer.reinforce(made, tiny.processor(), [absent(tmp_path)], [], settings(learning_rate=1e-6, groups_at_once=1, **BOTH), seed=0)
    end = {name: value.detach() for name, value in made.named_parameters() if value.requires_grad}
    assert {value.dtype for value in end.values()} == {torch.float32}
    assert {value.dtype for value in made.parameters() if not value.requires_grad} == {torch.bfloat16}
    large = [(end[name][value.abs() > 0.01], value[value.abs() > 0.01]) for name, value in start.items()]
    assert all(torch.equal(own.bfloat16(), begun) for own, begun in large), "as bfloat16 they are where they began"
    moved = max((own - begun.float()).abs().max().item() for own, begun in large if len(own))
    assert 1e-7 < moved < 3e-6


def test_a_model_in_bfloat16_has_rewards_and_log_probabilities_in_float32(tmp_path):
    with built(model(), [pointing(tmp_path)], updates_per_rollout=2, kl_weight=0.5, **BOTH) as policy:
        assert policy.model.dtype == torch.bfloat16
        assert type(policy.optimizer).__name__ == "MasterAdamW"
        batch = prepared(policy)
        assert {batch[name].dtype for name in ("advantages", "old_per_token_logps", "ref_per_token_logps")} == {torch.float32}
        loss = policy.compute_loss(policy.model, batch)
    assert loss.dtype == torch.float32


def test_a_word_s_chance_counts_up_to_a_bound_of_its_own_on_either_side(tmp_path):
    """Each word's loss is minus the smaller of ratio and bounded ratio, times the advantage; the bounds are 0.8 and 1.28."""
    with built(model(), [problem(tmp_path)], updates_per_rollout=2) as policy:
        batch = prepared(policy)
        before = batch["old_per_token_logps"]
        for ratio, advantage, loss in ((1.25, 1.0, -1.25), (1.3, 1.0, -1.28), (0.85, -1.0, 0.85), (0.75, -1.0, 0.8), (1.3, -1.0, 1.3)):
            batch["old_per_token_logps"] = before - math.log(ratio)
            batch["advantages"] = torch.full_like(batch["advantages"], advantage)
            assert policy.compute_loss(policy.model, batch).item() == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"row_tokens": 400}, "row_tokens, compile and workers must be left out here"),
        ({"row_tokens": 400, "compile": True}, "row_tokens, compile and workers must be left out here"),
        ({"workers": 1}, "row_tokens, compile and workers must be left out here"),
        ({"groups_at_once": 1, "deepspeed": "zero.json"}, "groups_at_once must be left out under deepspeed"),
        ({"groups_at_once": 0}, "greater than 0"),
        ({"cold_start": BOTH["cold_start"]}, "dtype must be bfloat16 where cold_start's is"),
    ],
)
def test_what_rewarded_answers_cannot_have_is_refused(changes, sentence):
    with pytest.raises(ValidationError, match=sentence):
        settings(**changes)


def test_a_data_set_is_made_without_a_look_at_its_samples(tmp_path, caplog):
    class Sealed(Draws):
        def __reduce__(self):
            raise AssertionError("pickled")

    made = dataset(Sealed(Mixture([problem(tmp_path), pointing(tmp_path)], [], 0), 5, 0))
    assert not caplog.records, "of a hash that failed"
    assert [len(made), made[3]["sample"].sample_id] == [5, made[3:4]["sample"][0].sample_id]
