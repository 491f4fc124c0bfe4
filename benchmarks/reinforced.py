"""A whole step of stage 5, rollout, rewards, gradient and update, beside TRL's GRPOTrainer as most people run it, on the same model."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks import answers
from benchmarks.shapes import WORDS
from unimed.config import MaskLoss, Optimisation
from unimed.data.samples import Sample, Turn
from unimed.data.shards import Place
from unimed.model.processor import UniMedProcessor
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.rewarding import Grpo
from unimed.rl import prompts, rewards, trainer
from unimed.rl.drawn import dataset
from unimed.train.draws import Draws
from unimed.train.loop import train_only
from unimed.train.memory import GIB
from unimed.train.mixture import Mixture

OPTIMISATION: dict[str, Any] = {"learning_rate": 2e-5, "warmup_steps": 0, "dtype": "bfloat16"}


@dataclass(frozen=True)
class Asked(Sample):
    """A problem about an image of noise, which lies in no shard."""

    def load_image(self) -> Image.Image:
        """The same noise every time."""
        return Image.fromarray(np.random.default_rng(0).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8))


class Clock(TrainerCallback):
    """Seconds of every step of a trainer and of its phases."""

    def __init__(self, followed: GRPOTrainer, wait: Callable[[], None]):
        self.wait, self.began = wait, 0.0
        self.steps: list[dict[str, float]] = []
        followed.add_callback(self)
        for phase, name in (("rollout", "_generate"), ("rewards", "_calculate_rewards")):
            setattr(followed, name, self._timed(phase, getattr(followed, name)))

    def _timed(self, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            done = work(*args, **kwargs)
            self.steps[-1][phase] = self._now() - start
            return done

        return timed

    def _now(self) -> float:
        self.wait()
        return time.perf_counter()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """A step begins."""
        self.steps.append({})
        self.began = self._now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """A step has ended."""
        self.steps[-1]["step"] = self._now() - self.began

    def mean(self, phase: str) -> float:
        """Seconds of a phase in a step, without the first where there are others: it compiles."""
        counted = self.steps[1:] or self.steps
        return sum(step[phase] for step in counted) / len(counted)


@dataclass(frozen=True)
class Step:
    """Seconds of a step and of its parts, and GiB at the peak."""

    step: float
    rollout: float
    rewards: float
    peak: float

    @property
    def gradient(self) -> float:
        """What is neither rollout nor reward: gradient pass and update."""
        return self.step - self.rollout - self.rewards


def problems(processor: UniMedProcessor, load: answers.Load) -> list[Sample]:
    """Problems with options whose prompts have as many tokens as asked."""
    return [_problem(processor, load.prompt, number) for number in range(load.prompts)]


def _problem(processor: UniMedProcessor, length: int, number: int) -> Asked:
    def of(words: int) -> Asked:
        question = ascii_uppercase[number] * words
        turn = {"question": question, "answer": "A", "question_type": "", "answer_type": "", "conversation_id": "", "task": ""}
        none = {"rationale": "", "region_rles": (), "target_rles": (), "height": 768, "width": 768}
        turns = (Turn(**turn, **none, options=("yes", "no"), solution="A"),)
        return Asked(f"{number}", "", "", "", 768, 768, turns, Path(), Place("", 0, 0))

    asked = processor.apply_chat_template([prompts.reasoning_messages(of(0), think=True)], add_generation_prompt=True)
    # A capital is a token: no text that the tokenizer was made from repeats one.
    return of(max(0, length - len(processor.tokenizer(processor.expand(asked[0], [(768, 768)]))["input_ids"])))


def ours(
    model: UniMedForConditionalGeneration, processor: UniMedProcessor, load: answers.Load, device: torch.device, steps: int, groups: int
) -> Step:
    """Our steps: some groups at a time through the layers, in bfloat16."""
    sizes = {"batch_size": load.prompts, "max_steps": steps, "group_size": load.siblings, "max_completion_length": load.new}
    shares = {"direct_share": 0.0, "vqa_share": 0.0, "grounding_share": 0.0, "kl_weight": 0.0}
    weights = {"format_weight": 1.0, "answer_weight": 1.0, "mask_weight": 1.0}
    settings = Grpo(
        **OPTIMISATION, **sizes, **shares, **weights, rank=16, scaling=2.0, mask_loss=MaskLoss(pixel_weight=1.0, dice_weight=1.0),
        cold_start=Optimisation(batch_size=1, max_steps=1, learning_rate=1e-4), updates_per_rollout=1, groups_at_once=groups,
        temperature=1.0, epsilon=0.2, epsilon_high=0.28, normalise="each_reward",
    )  # fmt: skip
    with trainer.policy(model, processor, Mixture(problems(processor, load), [], 0), settings, 0) as policy:
        return _measured(policy, device)


def trl(model: UniMedForConditionalGeneration, processor: UniMedProcessor, load: answers.Load, device: torch.device) -> Step:
    """A step of TRL's trainer: `generate`, float32 adapters under autocast, checkpointing, the answers of one prompt at a time."""
    args = GRPOConfig(
        output_dir="runs/trainer", per_device_train_batch_size=load.siblings, gradient_accumulation_steps=load.prompts,
        num_generations=load.siblings, max_completion_length=load.new, max_steps=1, learning_rate=OPTIMISATION["learning_rate"],
        generation_kwargs={"use_cache": True}, remove_unused_columns=False, bf16=True,
        use_cpu=device.type == "cpu", save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    data = dataset(Draws(Mixture(problems(processor, load), [], 0), load.prompts, 0))
    graders = rewards.graders(model, processor)
    followed = GRPOTrainer(model=model, args=args, reward_funcs=graders, train_dataset=data, processing_class=processor)
    found = _measured(followed, device)
    del model.forward
    model.gradient_checkpointing_disable()
    return found


def _measured(followed: GRPOTrainer, device: torch.device) -> Step:
    """Train, with no answer that ends before its last word."""
    followed.remove_callback(PrinterCallback)
    ends = followed.processing_class.tokenizer.eos_token_id
    followed.generation_config.suppress_tokens = [*(followed.generation_config.suppress_tokens or []), ends]
    gpu = device.type == "cuda"
    clock = Clock(followed, torch.cuda.synchronize if gpu else lambda: None)
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    followed.train()
    peak = torch.cuda.max_memory_allocated() / GIB if gpu else 0.0
    return Step(clock.mean("step"), clock.mean("rollout"), clock.mean("rewards"), peak)


def rows(shape: str, load: answers.Load, device: torch.device) -> Iterator[tuple[object, ...]]:
    """The table, row by row as it is measured."""
    yield "stage", "step s", "rollout s", "rewards s", "gradient s", "peak GiB"
    yield ("---",) * 6
    model = answers.policy(shape, "sequence", device)
    train_only(model, [name for name, _ in model.named_parameters() if ".reasoner." in name])
    processor = UniMedProcessor.of(model.config, WORDS)
    roomy = device.type == "cpu" or torch.cuda.get_device_properties(device).total_memory > 100 * GIB
    for groups in (2, 4) if roomy else (2,):
        own = ours(model, processor, load, device, steps=3, groups=groups)
        yield f"5, a step, {groups} groups at once", *_cells(own)
    # Its adapters are float32 now, as TRL's users have theirs.
    trl(model, processor, answers.Load(1, load.prompt, load.siblings, 4), device)
    base = trl(model, processor, load, device)
    yield "5, a step of TRL's", *_cells(base)
    yield "5, times", *(other / one if one else 0.0 for one, other in zip(_cells(own), _cells(base), strict=True))


def _cells(found: Step) -> tuple[float, ...]:
    return found.step, found.rollout, found.rewards, found.gradient, found.peak
