"""What siblings share is done once and changes nothing."""

import pytest
import tiny
import torch
from problems import CLOSE, answered, built, generated, marked, plain, pointing, problem, settings, with_reasoner
from transformers import GenerationConfig

from unimed.model import adapters
from unimed.rl import prompts, rollout, trainer


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_a_rollout_says_what_generate_says(tmp_path, level):
    model, processor = tiny.stirred(**tiny.EXPERTS, router_level=level), tiny.processor()
    asked = [prompts.reasoning_messages(sample, think=True) for sample in (problem(tmp_path), marked(tmp_path))]
    pictures = [tiny.picture(0), tiny.marked(tiny.picture(1), tiny.box(4, 6, 9, 9))]
    inputs = processor(
        images=pictures, text=processor.apply_chat_template(asked, add_generation_prompt=True), padding=True, return_tensors="pt"
    )
    greedy = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0, use_cache=True)
    expected = model.generate(**inputs, generation_config=greedy)[:, inputs["input_ids"].shape[1] :]
    found = rollout.sample(model, inputs, 3, greedy)
    assert torch.equal(found, expected.repeat_interleave(3, 0))
    assert not torch.equal(found[0], found[3])


def test_answers_are_cut_behind_the_first_of_several_ends_and_stand_by_their_own_prompts(tmp_path):
    model, processor = tiny.stirred(**tiny.EXPERTS, router_level="sequence"), tiny.processor()
    image = {"type": "image", "image": tiny.picture(0)}
    questions = [[{"role": "user", "content": [image, {"type": "text", "text": text}]}] for text in ("Is it?", "Which structure is it?")]
    asked = [question for question in questions for _ in range(4)]
    with_reasoner(model)
    with built(model, [problem(tmp_path)]) as policy:

        def said(*ends):
            policy.eos_token_ids = list(ends)
            torch.manual_seed(0)
            return rollout.rollout(processor)(asked, policy)

        whole = said()["completion_ids"]
        ends = whole[0][3], whole[5][2]
        cut = [row[: next((place for place, word in enumerate(row, 1) if word in ends), len(row))] for row in whole]
        assert {len(row) for row in whole} == {6} and {row[-1] for row in cut}.issuperset(ends)
        found = said(*ends)
    assert found["completion_ids"] == cut
    assert found["prompt_ids"] == [processor.apply_chat_template(one, tokenize=True, add_generation_prompt=True)[0] for one in asked]


def test_rows_are_alike_when_prompt_and_every_pixel_are():
    pixels, prompts_ = torch.rand(2, 4, 8, 8), torch.tensor([[1, 2, 3], [1, 2, 4]])
    almost = pixels[0].clone()
    almost[3, 7, 7] += 1e-3
    rows = torch.stack([pixels[1], pixels[0], pixels[1], almost, pixels[0], pixels[1]])
    assert rollout.first_alike(prompts_[[0, 0, 0, 0, 0, 1]], rows).tolist() == [0, 1, 0, 3, 1, 5]


def test_rows_whose_pixels_lie_otherwise_and_have_the_same_means_are_not_alike():
    rows = torch.zeros(3, 3, 8, 8)
    rows[0, 0, 0, 0] = rows[1, 0, 0, 1] = rows[2, 0, 0, 0] = 1
    assert rollout.first_alike(torch.ones(3, 2, dtype=torch.long), rows).tolist() == [0, 1, 0]


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_reading_prompts_once_changes_neither_states_nor_gradients(tmp_path, level):
    model = tiny.stirred(**tiny.EXPERTS, router_level=level)
    names = with_reasoner(model)
    samples = [marked(tmp_path), problem(tmp_path), pointing(tmp_path)]
    ids, mask, pixels, length = answered(samples, [0, 2, 1, 0, 0, 2], "yes no yes It no is")
    weight = torch.rand(6, length, 32)
    outputs, grads, seen = [], [], []
    model.model.encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for sharing in (False, True):
        model.zero_grad()
        with rollout.sharing_prompts(model) as shared, shared.prompts_of(ids.shape[1] - length if sharing else 0):
            outputs.append(
                model.model(input_ids=ids, attention_mask=mask, pixel_values=pixels, use_cache=False).last_hidden_state[:, -length:]
            )
        (outputs[-1] * weight).sum().backward()
        grads.append(torch.cat([model.get_parameter(name).grad.flatten() for name in names]))
    assert seen == [6, 3]
    torch.testing.assert_close(*outputs, **CLOSE)
    if level == "token":
        torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_rollouts_after_a_cold_start_are_those_of_a_freshly_loaded_model(tmp_path):
    used, fresh = (tiny.stirred(**tiny.EXPERTS, router_level="sequence") for _ in range(2))
    with_reasoner(used)
    shown = [problem(tmp_path), marked(tmp_path)], [plain(tmp_path)], [pointing(tmp_path)]
    trainer.cold_start(used, tiny.processor(), *shown, settings(), seed=0)
    adapters.load(fresh.model.language_model, "reasoner", adapters.taken(used.model.language_model, "reasoner"))
    said = []
    for model in (used, fresh):
        with built(model, shown[0]) as policy:
            torch.manual_seed(0)
            said.append(generated(policy)["completion_ids"])
    assert torch.equal(*said)
