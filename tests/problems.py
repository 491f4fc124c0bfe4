"""Problems, mask prompts and a small model for the tests of stage 5."""

import dataclasses
from contextlib import contextmanager

import tiny
import torch

from unimed.data.records import SEG
from unimed.model import adapters, tokenizer
from unimed.rewarding import Grpo
from unimed.rl import prompts, trainer
from unimed.train.loop import train_only
from unimed.train.mixture import Mixture

CLOSE = {"atol": 1e-5, "rtol": 0}
OPTIONS = ("yes", "no")
QUESTION = "Is there a nodule?\nA) yes\nB) no"
MARKED = "Is <region> the liver?\nA) yes\nB) no"
OPTIMISATION = {"batch_size": 2, "max_steps": 2, "learning_rate": 1e-2, "warmup_steps": 0}
SETTINGS = OPTIMISATION | {
    "rank": 4, "scaling": 2.0, "cold_start": OPTIMISATION, "mask_loss": {"pixel_weight": 1.0, "dice_weight": 1.0},
    "direct_share": 0.2, "vqa_share": 0.0, "grounding_share": 0.5, "group_size": 4, "updates_per_rollout": 1, "temperature": 0.7,
    "max_completion_length": 6, "epsilon": 0.2, "epsilon_high": 0.28, "kl_weight": 0.0, "normalise": "each_reward",
    "format_weight": 1.0, "answer_weight": 1.0, "mask_weight": 1.0,
}  # fmt: skip


def settings(**changes) -> Grpo:
    return Grpo.model_validate(SETTINGS | changes)


def with_reasoner(model, rank=4):
    names = adapters.add(model.model.language_model, "reasoner", rank, 2.0, tiny.TARGETS)
    return train_only(model, [f"model.language_model.{name}" for name in names])


def with_stirred_reasoner(model):
    """A routed model whose reasoner, alone, trains; its adapters are far from zero."""
    with_reasoner(model)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(0, 0.1, generator=draw)
    return model


def problem(folder, seed=0, solution="A", rationale="It is there.", question=QUESTION, regions=(), side=tiny.SIZE):
    turn = tiny.turn(question, solution, regions=regions, side=side)
    return tiny.sample(folder, dataclasses.replace(turn, options=OPTIONS, solution=solution, rationale=rationale), seed=seed, side=side)


def marked(folder, seed=1, side=(tiny.SIZE, tiny.SIZE)):
    return problem(folder, seed, question=MARKED, regions=[tiny.box(4, 6, 9, 9, of=side)], side=side)


def pointing(folder, seed=2, side=(tiny.SIZE, tiny.SIZE)):
    turn = tiny.turn("Segment the liver.", SEG, targets=[tiny.box(3, 3, 20, 20, of=side)], side=side)
    return tiny.sample(folder, turn, seed=seed, side=side)


def plain(folder, seed=4):
    return tiny.sample(folder, tiny.turn("Is there a liver?", "Yes"), seed=seed)


def absent(folder, seed=3):
    return tiny.sample(folder, tiny.turn("Segment the spleen.", "There is none."), seed=seed)


@contextmanager
def built(model, samples, processor=None, **changes):
    """The trainer as `reinforce` builds it, in training mode."""
    with trainer.policy(model, processor or tiny.processor(), Mixture(samples, [], 0), settings(**changes), 0) as policy:
        model.train()
        yield policy


def babbling(model):
    """The model, sharing prompts or not, with `<SEG>` a likely next token wherever it stands."""
    inputs = tiny.inputs([tiny.picture(0)], *tiny.ask("<image>Segment the liver."))
    with torch.no_grad():
        hidden = model.model(**inputs).last_hidden_state[0, -1]
        model.grounding.seg_output.copy_(hidden / hidden.square().sum() * (model.lm_head(hidden).logsumexp(0) - 2))
    return model


def generated(policy):
    """One rollout with its rewards and advantages."""
    return policy._generate_and_score_completions(next(iter(policy.get_train_dataloader())))


def answered(samples, rows, words):
    """Ids, mask and pixels of prompts, drawn by number, each with a word as its answer; and how many positions the answers take."""
    ids, mask, inputs, length = replied(tiny.processor(), samples, rows, words)
    return ids, mask, inputs["pixel_values"], length


def replied(processor, samples, rows, words):
    """Like `answered`, with all that the processor made in place of the pixels."""
    asked = processor.apply_chat_template(
        [prompts.reasoning_messages(samples[row], think=True) for row in rows], add_generation_prompt=True
    )
    pictures = [tiny.marked(samples[row].load_image(), *samples[row].turns[0].regions) for row in rows]
    inputs = processor(images=pictures, text=asked, padding=True, return_tensors="pt")
    said = processor.tokenizer([word + tokenizer.END for word in words.split()], padding=True, padding_side="right", return_tensors="pt")
    ids, mask = (torch.cat([inputs[name], said[name]], 1) for name in ("input_ids", "attention_mask"))
    return ids, mask, inputs, said["input_ids"].shape[1]
