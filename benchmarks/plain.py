"""The baseline: transformers and peft as most people run them.

float32 adapters under bfloat16 autocast, gradient checkpointing, samples padded to the longest of eight, the library's own loss over all
positions, nothing compiled.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from benchmarks.shapes import TAKEN, Drawn, build
from unimed.model.assemble import ALIGNED, EXPERT_TARGETS
from unimed.model.configuration import UniMedConfig
from unimed.train.batch import IGNORED
from unimed.train.loop import train_only

BATCH = 8


def adapters(config: UniMedConfig, samples: Sequence[Drawn], steps: int, device: torch.device) -> float:
    """Useful tokens a second of a LoRA of rank 16 on all linears, language model alone."""
    model = _language(config, device)
    tuned = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=list(EXPERT_TARGETS)))
    tuned.enable_input_require_grads()
    lengths = [sample.words for sample in samples[: BATCH * (steps + 2)]]
    batches = [lengths[start : start + BATCH] for start in range(0, len(lengths), BATCH)]

    def loss(number: int) -> Tensor:
        ids = torch.randint(TAKEN, config.text_config.vocab_size, (BATCH, max(batches[number])), device=device)
        mask = torch.arange(ids.shape[1], device=device) < torch.tensor(batches[number], device=device).unsqueeze(1)
        return tuned(input_ids=ids, attention_mask=mask.long(), labels=ids.masked_fill(~mask, IGNORED)).loss

    times = _seconds(tuned, loss, steps, device)
    return statistics.median(sum(lengths) / seconds for lengths, seconds in zip(batches[2:], times, strict=False))


def alignment(config: UniMedConfig, sample: Drawn, steps: int, device: torch.device) -> float:
    """Samples a second of fusions and projector that learn in front of a frozen language model, encoders included."""
    model = build(config, device)
    train_only(model, ALIGNED)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and device.type == "cuda":
            model.get_submodule(name.rpartition(".")[0]).float()
    language = _language(config, device, model)
    pixels = torch.rand(BATCH, 3, config.image_size, config.image_size, device=device, dtype=model.dtype)

    def loss(number: int) -> Tensor:
        ids = torch.randint(TAKEN, config.text_config.vocab_size, (BATCH, sample.words), device=device)
        seen = model.model.image_features(pixels).to(language.dtype)
        labels = torch.full((BATCH, seen.shape[1] + sample.words), IGNORED, device=device)
        labels[:, -sample.labelled :] = ids[:, -sample.labelled :]
        return language(inputs_embeds=torch.cat([seen, language.get_input_embeddings()(ids)], 1), labels=labels).loss

    return BATCH / statistics.median(_seconds(model, loss, steps, device))


def _language(config: UniMedConfig, device: torch.device, around: nn.Module | None = None) -> LlamaForCausalLM:
    """The causal language model as transformers has it, checkpointed; `around` the model whose parts it takes, or fresh."""
    whole = around or build(config, device)
    with torch.device("meta"):
        language = LlamaForCausalLM(config.text_config)
    language.model, language.lm_head = whole.model.language_model, whole.lm_head
    language.gradient_checkpointing_enable()
    return language.train()


def _seconds(model: nn.Module, loss: Callable[[int], Tensor], steps: int, device: torch.device) -> list[float]:
    """Time of each of `steps` optimizer steps after two. The median is what counts: a length's first batch takes seconds more."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ends = []
    for number in range(steps + 2):
        with torch.autocast(device.type, torch.bfloat16):
            value = loss(number)
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)
        ends.append(time.perf_counter())
    return [after - before for before, after in pairwise(ends[1:])]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
