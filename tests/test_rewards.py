"""What a completion earns, by hand: forms, options, masks present and absent."""

import dataclasses

import pytest
import tiny
import torch
from torch.nn.functional import interpolate

from unimed.data.records import SEG
from unimed.model import tokenizer
from unimed.rl import rewards

OPTIONS = ("Lungs", "Heart", "Left kidney", "A rib")
WELL = "<think>It moves.</think><answer>{}</answer>"

FORMS = [
    (1, WELL.format("B")),
    (1, "<think>It moves.</think>\n<answer>\nHeart\n</answer>\n"),
    (1, "  <think>a < b, so\nit beats</think> <answer>Heart</answer>"),
    (1, "<think>It moves.</think><answer>no idea</answer>"),
    (0, ""),
    (0, "Heart"),
    (0, "<answer>Heart</answer>"),
    (0, "<think>It moves.</think>Heart"),
    (0, "<think>It moves.</think>"),
    (0, "<think></think><answer>Heart</answer>"),
    (0, "<think> \n</think><answer>Heart</answer>"),
    (0, "<think>It moves.</think><answer> </answer>"),
    (0, "<answer>Heart</answer><think>It moves.</think>"),
    (0, "So: <think>It moves.</think><answer>Heart</answer>"),
    (0, "<think>It moves.</think><answer>Heart</answer> I think."),
    (0, "<think>It moves.</think> so <answer>Heart</answer>"),
    (0, "<think>It moves.<answer>Heart</answer>"),
    (0, "<think>It moves.</think><answer>Heart"),
    (0, "<think>It moves.</think><answer>Heart</answer><answer>Heart</answer>"),
    (0, "<think>It <think>moves.</think><answer>Heart</answer>"),
    (0, "<think>It moves.</think></think><answer>Heart</answer>"),
    (0, "<Think>It moves.</Think><Answer>Heart</Answer>"),
    (0, "<think>It moves.</think><answer>Heart</answer><|end|><think>"),
]

ANSWERS = [
    (1, WELL.format("B")),
    (1, WELL.format("(b)")),
    (1, WELL.format("B) Heart")),
    (1, WELL.format("heart")),
    (1, WELL.format("The heart.")),
    (1, "<think>Not the lungs, A is wrong.</think><answer>Heart</answer>"),
    (0, WELL.format("A")),
    (0, WELL.format("Lungs")),
    (0, WELL.format("A) Heart")),
    (0, WELL.format("Lungs or heart")),
    (0, WELL.format("A, B, C, D")),
    (0, WELL.format("not the heart")),
    (0, WELL.format("no idea")),
    (0, "B"),
    (0, "<answer>Heart</answer>"),
    (0, "<think>Heart</think><answer></answer>"),
    (0, "<think>It moves.</think><answer>Heart</answer> B"),
]

MASKS = [
    # overlaps, emitted, wanted, reward
    ([], 0, 0, 1.0),
    ([], 1, 0, 0.0),
    ([], 3, 0, 0.0),
    ([], 0, 1, 0.0),
    ([], 0, 2, 0.0),
    ([0.5], 1, 1, 0.5),
    ([1.0], 1, 1, 1.0),
    ([0.0], 1, 1, 0.0),
    ([0.5], 2, 1, 0.25),
    ([0.75], 1, 2, 0.375),
    ([1.0, 0.5], 2, 2, 0.75),
    ([1.0, 0.5], 4, 2, 0.375),
    ([1.0], 1, 4, 0.25),
]


@pytest.mark.parametrize(("earned", "text"), FORMS)
def test_one_thought_and_then_one_answer_earn_the_form(earned, text):
    assert rewards.form(text) == earned


@pytest.mark.parametrize(("earned", "text"), ANSWERS)
def test_the_right_option_in_the_right_form_earns_the_answer(earned, text):
    assert rewards.option(text, OPTIONS, "B") == earned


@pytest.mark.parametrize(("overlaps", "emitted", "wanted", "earned"), MASKS)
def test_masks_earn_their_mean_overlap_and_one_too_many_or_too_few_counts_as_none(overlaps, emitted, wanted, earned):
    assert rewards.pointing(overlaps, emitted, wanted) == earned


@pytest.mark.parametrize("siblings", [2, 3, 7, 8, 16])
def test_equal_overlaps_have_no_spread_to_the_last_bit(siblings):
    earned = torch.tensor([rewards.pointing([0.1 + 0.2], 1, 1)] * siblings)
    assert not (earned - earned.nanmean()).any()


@pytest.fixture(scope="module")
def words():
    return dataclasses.replace(tiny.turn("Which organ?\nA) Lungs\nB) Heart", "B"), options=OPTIONS[:2], solution="B")


def ids(words, text):
    return words.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_item_is_graded_by_its_own_rewards_alone(tmp_path, words):
    model, processor = tiny.stirred(), tiny.processor()
    choice, absent = tiny.sample(tmp_path, words), tiny.sample(tmp_path, tiny.turn("Segment the liver.", "There is none."), seed=1)
    present = tiny.sample(tmp_path, tiny.turn("Segment the liver.", SEG, targets=[tiny.box(2, 3, 20, 10)]), seed=2)
    texts = [WELL.format("B"), WELL.format("A"), "B", "There is none.", SEG, "There is none."]
    batch = {
        "completion_ids": [[*ids(processor, text), processor.tokenizer.eos_token_id] for text in texts],
        "sample": [choice, choice, choice, absent, absent, present],
        "prompts": [[]] * 6,
    }
    form, answer, mask = (grade(**batch) for grade in rewards.graders(model, processor))
    assert form == [1, 1, 0, None, None, None]
    assert answer == [1, 0, 0, None, None, None]
    assert mask == [None, None, None, 1, 0, 0], "the same words about another sample earn what they earn there"


def test_a_completion_is_read_with_its_special_tokens_and_without_its_end():
    processor = tiny.processor()
    text = f"It is {SEG}."
    assert rewards.said(processor, ids(processor, text + tokenizer.END)) == text
    assert rewards.said(processor, ids(processor, text)) == text


def prompt(sample):
    return [
        {"role": "user", "content": [{"type": "image", "image": sample.load_image()}, {"type": "text", "text": sample.turns[0].question}]}
    ]


def test_overlaps_are_those_of_the_masks_that_the_model_decodes(tmp_path):
    model, processor = tiny.stirred(), tiny.processor()
    targets = [tiny.box(2, 3, 20, 10), tiny.box(15, 15, 9, 9)]
    one = tiny.sample(tmp_path, tiny.turn("Segment the liver.", SEG, targets=targets[:1]))
    two = tiny.sample(tmp_path, tiny.turn("Segment the liver and the left kidney, please.", f"{SEG} and {SEG}", targets=targets), seed=1)
    completions = [ids(processor, text + tokenizer.END) for text in (f"{SEG}", f"{SEG} and {SEG}", f"It is {SEG}")]
    asked = [one, two, two]
    found = rewards.overlaps(model, processor, [prompt(s) for s in asked], completions, [s.turns[0].targets for s in asked])
    assert [len(row) for row in found] == [1, 2, 1]
    for sample, completion, row in zip(asked, completions, found, strict=True):
        read = processor.apply_chat_template([prompt(sample)], tokenize=True, return_dict=True, add_generation_prompt=True)
        text = torch.tensor([read["input_ids"][0] + completion])
        with torch.no_grad():
            low = model(text, pixel_values=read["pixel_values"], segment=True).mask_logits
        seen = interpolate(low.unsqueeze(1), tiny.SIZE, mode="bilinear").squeeze(1).sigmoid()
        for value, mask, target in zip(row, seen, sample.turns[0].targets, strict=False):
            target = torch.from_numpy(target).float()
            dice = (2 * (mask * target).sum() + 1) / (mask.sum() + target.sum() + 1)
            assert value == pytest.approx(dice.item(), abs=1e-5)


def test_the_same_words_to_another_question_are_looked_at_as_its_answer(tmp_path):
    model, processor, target = tiny.stirred(), tiny.processor(), tiny.box(2, 3, 20, 10)
    questions = ("Segment the liver.", "Which structure is marked? Is there a nodule? Segment it.")
    samples = [tiny.sample(tmp_path, tiny.turn(text, SEG, targets=[target]), seed=seed) for seed, text in enumerate(questions)]
    for parameter in model.grounding.sam.mask_decoder.output_hypernetworks_mlps[0].layers[-1].parameters():
        parameter.data *= 1000  # masks that have made up their mind
    reward, said = rewards.graders(model, processor)[2], ids(processor, SEG + tokenizer.END)
    alone = [reward(prompts=[prompt(one)], completion_ids=[said], sample=[one])[0] for one in samples]
    assert reward(prompts=[prompt(one) for one in samples], completion_ids=[said, said], sample=samples) == alone
    assert alone[0] != alone[1]


def test_overlaps_of_a_model_in_bfloat16_are_counted_in_float32(tmp_path):
    model, processor, target = tiny.stirred().bfloat16(), tiny.processor(), tiny.box(2, 3, 20, 10)
    sample = tiny.sample(tmp_path, tiny.turn("Segment the liver.", SEG, targets=[target]))
    completion = ids(processor, SEG + tokenizer.END)
    [[found]] = rewards.overlaps(model, processor, [prompt(sample)], [completion], [[target]])
    read = processor.apply_chat_template([prompt(sample)], tokenize=True, return_dict=True, add_generation_prompt=True)
    with torch.no_grad():
        low = model(torch.tensor([read["input_ids"][0] + completion]), pixel_values=read["pixel_values"], segment=True).mask_logits
    mask = interpolate(low.float().unsqueeze(1), tiny.SIZE, mode="bilinear")[0, 0].sigmoid()
    wanted = torch.from_numpy(target).float()
    assert found == pytest.approx(((2 * (mask * wanted).sum() + 1) / (mask.sum() + wanted.sum() + 1)).item(), abs=1e-6)


def test_masks_asked_for_earlier_in_a_conversation_are_not_rewarded(tmp_path):
    model, processor = tiny.stirred(), tiny.processor()
    early, late = tiny.box(2, 3, 20, 10), tiny.box(15, 15, 9, 9)
    sample = tiny.sample(tmp_path, tiny.turn("Segment the liver.", SEG, targets=[early]), tiny.turn("And the kidney?", SEG, targets=[late]))
    said = [*prompt(sample), {"role": "assistant", "content": SEG}, {"role": "user", "content": "And the kidney?"}]
    completion = ids(processor, SEG + tokenizer.END)
    [[found]] = rewards.overlaps(model, processor, [said], [completion], [[late]])
    [[wrong]] = rewards.overlaps(model, processor, [said], [completion], [[early]])
    assert found != wrong
    with torch.no_grad():
        read = processor.apply_chat_template([said], tokenize=True, return_dict=True, add_generation_prompt=True)
        low = model(torch.tensor([read["input_ids"][0] + completion]), pixel_values=read["pixel_values"], segment=True).mask_logits
    assert len(low) == 2
    mask, target = interpolate(low[1:].unsqueeze(1), tiny.SIZE, mode="bilinear")[0, 0].sigmoid(), torch.from_numpy(late).float()
    assert found == pytest.approx(((2 * (mask * target).sum() + 1) / (mask.sum() + target.sum() + 1)).item(), abs=1e-5)
