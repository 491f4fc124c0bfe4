"""The two halves of stage 5: a cold start on right answers that reason, then TRL's GRPO with rewards that can be checked.

GRPO: Shao et al. 2024, arXiv:2402.03300; as in DAPO (Yu et al. 2025, arXiv:2503.14476) the loss counts tokens, not answers, and
the upper clip may lie higher. DAPO's refilling of prompts whose answers all earn the same is left out: their share is logged.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PrinterCallback
from trl import GRPOConfig

from unimed.data.samples import Sample
from unimed.model.processor import UniMedProcessor
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.rewarding import Grpo
from unimed.rl import prompts, rewards, rollout
from unimed.rl.drawn import dataset
from unimed.rl.policy import Policy
from unimed.train import fast_path, resuming, zero
from unimed.train.batch import Collator
from unimed.train.draws import Draws
from unimed.train.loop import fit
from unimed.train.masters import MasterAdamW
from unimed.train.mixture import Mixture
from unimed.train.progress import LOGGED, Progress
from unimed.train.tally import Tally
from unimed.train.together import per_process

logger = logging.getLogger("grpo")
History = list[dict[str, Any]]


def cold_start(
    model: UniMedForConditionalGeneration,
    processor: UniMedProcessor,
    reasoning: Sequence[Sample],
    vqa: Sequence[Sample],
    grounding: Sequence[Sample],
    settings: Grpo,
    seed: int,
) -> History:
    """Show what trains in `model` right answers with their thought, some without, and the experts' tasks; returns what was logged.

    Nothing happens when no problem comes with a rationale.
    """
    known = [sample for sample in reasoning if sample.turns[-1].rationale]
    if not known:
        logger.info("no cold start: none of %d problems has a rationale", len(reasoning))
        return []
    thoughts, direct = ([prompts.taught(sample, think) for sample in known] for think in (True, False))
    others = [(direct, settings.direct_share), (vqa, settings.vqa_share), (grounding, settings.grounding_share)]
    mixture = Mixture(thoughts, others, seed)
    return fit(model, mixture, Collator(processor), settings.cold_start, seed, "cold_start", mask_loss=settings.mask_loss)


def reinforce(
    model: UniMedForConditionalGeneration,
    processor: UniMedProcessor,
    reasoning: Sequence[Sample],
    grounding: Sequence[Sample],
    settings: Grpo,
    seed: int,
) -> History:
    """Reward what trains in `model` for `settings.max_steps` optimizer steps; returns what was logged, step by step.

    Raises FloatingPointError for a step whose loss or gradient is not finite, unless `settings.failures` skips it.
    """
    mixture = Mixture(reasoning, [(grounding, settings.grounding_share)], seed)
    with policy(model, processor, mixture, settings, seed) as trainer:
        resuming.train(trainer, "grpo", boundary=settings.updates_per_rollout)
        trainer.arrive()
        zero.gather(trainer)
    model.eval()
    # Without seconds: the same training leaves the same bytes. Tracking has been told them.
    return [{name: value for name, value in entry.items() if name != "step_time"} for entry in trainer.state.log_history if LOGGED in entry]


@contextmanager
def policy(
    model: UniMedForConditionalGeneration, processor: UniMedProcessor, mixture: Mixture, settings: Grpo, seed: int
) -> Iterator[Policy]:
    """The trainer for what requires a gradient in `model`, on what `mixture` holds; within the block the model is its own.

    What trained is float32 afterwards.
    """
    # TRL reads the embedding tables alone.
    model.write_seg_rows()
    args = arguments(model, settings, seed)
    with warnings.catch_warnings(), rollout.sharing_prompts(model), fast_path.prepared(model, settings, args.device) as masters:
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield _policy(model, processor, mixture, settings, args, masters)
    # TRL has put its own forward over the class's.
    del model.forward


def _policy(
    model: UniMedForConditionalGeneration,
    processor: UniMedProcessor,
    mixture: Mixture,
    settings: Grpo,
    args: GRPOConfig,
    masters: MasterAdamW | None,
) -> Policy:
    progress = Progress("grpo", settings.max_steps)
    rollouts = -(-settings.max_steps // settings.updates_per_rollout)
    trainer = Policy(
        model=model,
        args=args,
        optimizers=(masters, None),
        reward_funcs=rewards.graders(model, processor),
        train_dataset=dataset(Draws(mixture, rollouts * settings.batch_size, args.seed)),
        processing_class=processor,
        rollout_func=rollout.rollout(processor),
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.tally, trainer.progress = Tally(settings.failures), progress
    trainer.rows_at_once = settings.groups_at_once and settings.groups_at_once * settings.group_size
    if settings.kl_weight:
        # TRL takes its reference from a peft wrapper or from disk; ours is the same model with its adapter as it is now.
        start = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
        trainer.beta, trainer.ref_model = settings.kl_weight, partial(_with_parameters, model, start)
    return trainer


def _with_parameters(model: UniMedForConditionalGeneration, parameters: dict[str, Tensor], **inputs: Any) -> Any:
    return functional_call(model, parameters, (), inputs)


def arguments(model: UniMedForConditionalGeneration, settings: Grpo, seed: int) -> GRPOConfig:
    """Our numbers in TRL's words. One step is one optimizer step on all answers of a rollout."""
    each = settings.normalise == "each_reward"
    return GRPOConfig(
        output_dir="runs/trainer",
        per_device_train_batch_size=per_process(settings) * settings.group_size,
        num_generations=settings.group_size,
        num_iterations=settings.updates_per_rollout,
        max_steps=settings.max_steps,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type="cosine",
        weight_decay=0.0,
        max_grad_norm=1.0,
        loss_type="dapo",
        beta=0.0,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high,
        multi_objective_aggregation="normalize_then_sum" if each else "sum_then_normalize",
        scale_rewards="group" if each else settings.normalise,
        reward_weights=[settings.format_weight, settings.answer_weight, settings.mask_weight],
        temperature=settings.temperature,
        max_completion_length=settings.max_completion_length,
        generation_kwargs={"suppress_tokens": [model.config.image_token_id, model.config.region_token_id], "use_cache": True},
        shuffle_dataset=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=False,
        activation_checkpointing=False,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        deepspeed=settings.deepspeed,
        seed=seed,
    )
