"""Stage 5: what TRL is fed, what it computes from it, and that rewards move the policy."""

import dataclasses
import logging
from contextlib import ExitStack

import pytest
import raw_tree
import tiny
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from components import grpo as component
from unimed.config import Grpo, MoeRouter
from unimed.errors import InputError
from unimed.model import adapters, artifacts, assemble, experts, tokenizer
from unimed.model.processor import SEG, UniMedProcessor
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.rl import prompts, rollout, trainer
from unimed.train.batch import Collator
from unimed.train.loop import fit, train_only
from unimed.train.mixture import Mixture

CLOSE = {"atol": 1e-5, "rtol": 0}
OPTIONS = ("yes", "no")
QUESTION = "Is there a nodule?\nA) yes\nB) no"
MARKED = "Is <region> the liver?\nA) yes\nB) no"
OPTIMISATION = {"batch_size": 2, "max_steps": 2, "learning_rate": 1e-2, "warmup_steps": 0}
SETTINGS = OPTIMISATION | {
    "rank": 4, "scaling": 2.0, "cold_start": OPTIMISATION, "mask_loss": {"pixel_weight": 1.0, "dice_weight": 1.0},
    "direct_share": 0.2, "grounding_share": 0.5, "group_size": 4, "updates_per_rollout": 1, "temperature": 0.7,
    "max_completion_length": 6, "epsilon": 0.2, "epsilon_high": 0.28, "kl_weight": 0.0, "normalise": "each_reward",
    "format_weight": 1.0, "answer_weight": 1.0, "mask_weight": 1.0,
}  # fmt: skip


def settings(**changes) -> Grpo:
    return Grpo.model_validate(SETTINGS | changes)


@pytest.fixture
def model():
    """A routed model whose reasoner, alone, trains; its routers and adapters are far from zero."""
    model = tiny.stirred(**tiny.EXPERTS, router_level="sequence")
    with_reasoner(model)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(0, 0.1, generator=draw)
    return model


def with_reasoner(model, rank=4):
    names = adapters.add(model.model.language_model, "reasoner", rank, 2.0, tiny.TARGETS)
    return train_only(model, [f"model.language_model.{name}" for name in names])


def problem(folder, seed=0, solution="A", rationale="It is there.", question=QUESTION, regions=()):
    turn = tiny.turn(question, solution, regions=regions)
    return tiny.sample(folder, dataclasses.replace(turn, options=OPTIONS, solution=solution, rationale=rationale), seed=seed)


def marked(folder, seed=1):
    return problem(folder, seed, question=MARKED, regions=[tiny.box(4, 6, 9, 9)])


def pointing(folder, seed=2):
    return tiny.sample(folder, tiny.turn("Segment the liver.", SEG, targets=[tiny.box(3, 3, 20, 20)]), seed=seed)


def built(model, samples, **changes):
    """The trainer as `reinforce` builds it, on samples of the first kind alone, in training mode."""
    model.write_seg_rows()
    policy = trainer.build(model, tiny.processor(), Mixture(samples, [], 0), settings(**changes), 0)
    model.train()
    return policy


def generated(policy):
    """One rollout with its rewards and advantages."""
    return policy._generate_and_score_completions(next(iter(policy.get_train_dataloader())))


def test_the_request_to_reason_stands_on_its_own_line_and_a_thought_comes_before_the_answer(tmp_path):
    sample, mask = problem(tmp_path), pointing(tmp_path)
    text = f"{QUESTION}\nReason in <think></think>, then answer in <answer></answer>."
    [message] = prompts.reasoning_messages(sample, think=True)
    assert message["content"][1]["text"] == text
    assert prompts.reasoning_messages(sample, think=False)[0]["content"][1]["text"] == QUESTION
    assert prompts.reasoning_messages(mask, think=True)[0]["content"][1]["text"] == "Segment the liver."
    thought, direct = (prompts.taught(sample, think).turns[0] for think in (True, False))
    assert (thought.question, thought.answer) == (text, "<think>It is there.</think><answer>yes</answer>")
    assert (direct.question, direct.answer) == (QUESTION, "yes")
    assert prompts.taught(mask, think=True) == mask


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_a_rollout_says_what_generate_says(tmp_path, level):
    model, processor = tiny.stirred(**tiny.EXPERTS, router_level=level), tiny.processor()
    asked = [prompts.reasoning_messages(sample, think=True) for sample in (problem(tmp_path), marked(tmp_path))]
    pictures = [tiny.picture(0), tiny.marked(tiny.picture(1), tiny.box(4, 6, 9, 9))]
    inputs = processor(images=pictures, text=processor.apply_chat_template(asked, add_generation_prompt=True), padding=True, return_tensors="pt")
    greedy = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0, use_cache=True)
    expected = model.generate(**inputs, generation_config=greedy)[:, inputs["input_ids"].shape[1] :]
    found = rollout.sample(model, inputs, 3, greedy)
    assert torch.equal(found, expected.repeat_interleave(3, 0))
    assert not torch.equal(found[0], found[3])


def test_images_that_repeat_are_encoded_once_with_the_gradient_of_all_copies():
    model = tiny.stirred()
    images = torch.rand(3, 3, tiny.SIZE, tiny.SIZE)
    almost = images[0].clone()
    almost[0, 0, 0] += 1e-3
    batch = torch.stack([images[2], images[0], images[2], images[1], almost, images[0]])
    assert rollout.first_alike(batch).tolist() == [0, 1, 0, 3, 4, 1]
    weight = torch.rand(6, 16, 32)
    grads, outputs, seen = [], [], []
    model.model.encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for once in (False, True):
        model.zero_grad()
        with ExitStack() as stack:
            if once:
                stack.enter_context(rollout.encoding_once(model))
            outputs.append(model.model.image_features(batch))
        (outputs[-1] * weight).sum().backward()
        grads.append(model.model.encoder.fusions[0].fc1.weight.grad)
    assert seen == [6, 4]
    torch.testing.assert_close(*outputs, **CLOSE)
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


def test_both_image_branches_and_the_regions_get_pixels_in_the_gradient_pass(tmp_path, model):
    sample, seen = marked(tmp_path), []

    def spy(name):
        return lambda module, args, kwargs: seen.append((name, torch.is_grad_enabled(), kwargs.get("pixel_values", *args[:1])))

    entries = {"vit": model.model.encoder.vision.embeddings, "detail": model.model.encoder.detail.embeddings, "backbone": model.model}
    for name, module in entries.items():
        module.register_forward_pre_hook(spy(name), with_kwargs=True)
    trainer.reinforce(model, tiny.processor(), [sample], [], settings(), seed=0)
    in_training = [(name, tensor) for name, with_grad, tensor in seen if with_grad]
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
    processor = tiny.processor()
    samples = [marked(tmp_path), problem(tmp_path), pointing(tmp_path)]
    policy = built(model, samples)
    asked = [prompts.reasoning_messages(sample, think=True) for sample in samples]
    pictures = [tiny.marked(sample.load_image(), *sample.turns[0].regions) for sample in samples]
    inputs = processor(images=pictures, text=processor.apply_chat_template(asked, add_generation_prompt=True), padding=True, return_tensors="pt")
    said = processor.tokenizer([f"yes {SEG} no{tokenizer.END}"] * 3, return_tensors="pt")["input_ids"]
    ids = torch.cat([inputs["input_ids"], said], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(said)], 1)
    length, pixels = said.shape[1], inputs["pixel_values"]
    with rollout.encoding_once(model):
        found, _, _ = policy._get_per_token_logps_and_entropies(model, ids, mask, length, pixel_values=pixels, num_images=[1, 1, 1])
    logits = model(ids, attention_mask=mask, pixel_values=pixels).logits[:, -length - 1 : -1] / 0.7
    expected = logits.log_softmax(-1).gather(2, said.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(found, expected, **CLOSE)
    for channels in (slice(0, 3), slice(3, 4)):
        other = pixels.clone()
        other[:1, channels] = other[:1, channels].flip(-1)
        moved, _, _ = policy._get_per_token_logps_and_entropies(model, ids, mask, length, pixel_values=other, num_images=[1, 1, 1])
        changed = (moved - found).abs().amax(1)
        assert changed[0] > 1e-4
        assert changed[1:].max() < 1e-5


@pytest.mark.parametrize("normalise", ["each_reward", "group"])
def test_siblings_that_earn_the_same_have_no_advantage_and_their_share_is_logged(tmp_path, model, normalise):
    policy = built(model, [problem(tmp_path)], normalise=normalise)

    def earn(*earned):
        policy.reward_funcs = [lambda value=value, **_: value for value in ([1.0] * 8, list(earned), [None] * 8)]
        policy._metrics["train"].clear()
        return generated(policy)["advantages"], policy._metrics["train"]["groups_without_spread"]

    equal = 307 / 1024
    advantages, share = earn(*[equal] * 4, 0.0, 1.0, 1.0, 1.0)
    assert advantages[:4].abs().max() < 1e-6
    assert advantages[4] < -0.5 < 0.1 < advantages[5:].min()
    assert share == [0.5]
    advantages, share = earn(*[equal] * 4, *[0.5] * 4)
    assert not advantages.any()
    assert share == [1.0]


def test_mask_prompts_do_not_weigh_on_problems_and_the_other_way_round(tmp_path, model):
    policy = built(model, [problem(tmp_path), pointing(tmp_path)])
    policy.reward_funcs = [
        lambda sample, **_: [float(n % 2) if s.turns[-1].options else None for n, s in enumerate(sample)],
        lambda sample, **_: [1.0 if s.turns[-1].options else None for s in sample],
        lambda sample, **_: [None if s.turns[-1].options else n % 2 / 1024 for n, s in enumerate(sample)],
    ]
    advantages = generated(policy)["advantages"].view(2, 4)
    for group in advantages:
        assert group[0] == group[2] < 0 < group[1] == group[3]
        assert group.sum().abs() < 1e-5


def test_only_the_reasoner_moves_and_every_step_is_in_the_history(tmp_path, model):
    model.write_seg_rows()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    history = trainer.reinforce(model, tiny.processor(), [problem(tmp_path), marked(tmp_path)], [pointing(tmp_path)], settings(max_steps=3), seed=0)
    after = model.state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".reasoner." in name for name in moved)
    assert "forward" not in vars(model)
    assert not model.training
    assert [entry["step"] for entry in history] == [1, 2, 3]
    named = {"loss", "reward", "groups_without_spread", "entropy", "completions/mean_length", "clip_ratio/high_mean", "step_time"}
    assert all(named <= entry.keys() for entry in history)
    assert all(isinstance(value, (int, float)) for entry in history for value in entry.values())
    assert {"rewards/format_reward/mean", "rewards/answer_reward/mean", "rewards/mask_reward/mean"} <= {key for entry in history for key in entry}


def test_the_same_seed_gives_the_same_run(tmp_path):
    histories = []
    for _ in range(2):
        model = tiny.stirred(**tiny.EXPERTS)
        with_reasoner(model)
        histories.append(trainer.reinforce(model, tiny.processor(), [problem(tmp_path)], [pointing(tmp_path)], settings(), seed=3))
    assert [(entry["loss"], entry["entropy"]) for entry in histories[0]] == [(entry["loss"], entry["entropy"]) for entry in histories[1]]


def test_answers_are_used_again_and_the_reference_is_the_policy_at_the_start(tmp_path, model):
    changes = {"updates_per_rollout": 2, "kl_weight": 0.1, "max_steps": 4}
    history = trainer.reinforce(model, tiny.processor(), [pointing(tmp_path)], [], settings(**changes), seed=0)
    assert ["reward" in entry for entry in history] == [True, False, True, False]
    assert history[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert all(entry["kl"] > 1e-6 for entry in history[1:])


def test_without_a_rationale_there_is_no_cold_start_and_one_line_says_so(tmp_path, model, caplog):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="grpo"):
        history = trainer.cold_start(model, tiny.processor(), [problem(tmp_path, rationale="")], [pointing(tmp_path)], settings(), seed=0)
    assert history == []
    assert [record.getMessage() for record in caplog.records] == ["no cold start: none of 1 problems has a rationale"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_cold_start_teaches_thoughts_direct_answers_and_masks(tmp_path, model):
    start = OPTIMISATION | {"batch_size": 4, "max_steps": 30}
    samples = [problem(tmp_path), marked(tmp_path)], [pointing(tmp_path)]
    history = trainer.cold_start(model, tiny.processor(), *samples, settings(cold_start=start, direct_share=0.25, grounding_share=0.25), seed=0)
    assert history[-1]["loss_words"] < 0.6 * history[0]["loss_words"]
    assert any("loss_dice" in entry for entry in history)


def test_no_problem_to_train_on_is_said_in_one_sentence(tmp_path, model):
    with pytest.raises(InputError, match="expected at least one training sample"):
        trainer.reinforce(model, tiny.processor(), [], [pointing(tmp_path)], settings(), seed=0)


@pytest.mark.slow
def test_rewards_raise_the_probability_of_what_they_reward(tmp_path):
    texts = (*tiny.TEXTS, QUESTION, prompts.THINK, "<think>It is there.</think><answer>yes</answer>", "<think>It is there.</think><answer>no</answer>")
    words = tokenizer.build(texts * 3, 400)
    processor = UniMedProcessor(words, image_size=tiny.SIZE, tokens_per_image=16)
    torch.manual_seed(0)
    model = UniMedForConditionalGeneration(tiny.config(words, **tiny.EXPERTS))
    samples = {letter: [problem(tmp_path, seed, letter) for seed in range(2)] for letter in "AB"}
    taught = {letter: [prompts.taught(sample, think=True) for sample in found] for letter, found in samples.items()}
    train_only(model, ["model.language_model", "lm_head"])
    warm = settings(cold_start=OPTIMISATION | {"batch_size": 8, "max_steps": 60}).cold_start
    fit(model, Mixture([*taught["A"], *taught["B"]], [], 0), Collator(processor), warm, 0, "warm")
    with_reasoner(model)

    def chance(letter):
        batch = Collator(processor)(taught[letter])
        with torch.no_grad():
            return model(**batch).loss.mul(-(batch["labels"][0] != -100).sum()).exp().item()

    before = {letter: chance(letter) for letter in "AB"}
    changes = {"batch_size": 4, "group_size": 8, "max_steps": 20, "max_completion_length": 16, "temperature": 1.0}
    history = trainer.reinforce(model, processor, samples["B"], [], settings(**changes), seed=0)
    assert 0.2 < before["B"] < 0.7
    assert chance("B") > 0.8
    assert chance("A") < 0.1
    assert sum(entry["rewards/answer_reward/mean"] for entry in history[-3:]) > 3 * 0.8
