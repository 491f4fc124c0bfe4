"""The third stage of DeepSpeed's ZeRO, which spreads every weight over the processes; a model is whole again afterwards."""

import json
from pathlib import Path

import torch
from transformers import Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

from unimed.errors import InputError


@torch.no_grad()
def gather(trainer: Trainer) -> None:
    """Give each process the trained model whole, on the CPU, where ZeRO had spread it; else nothing happens."""
    if not (trainer.is_deepspeed_enabled and is_deepspeed_zero3_enabled()):
        return
    from deepspeed.runtime.zero import GatheredParameters

    trainer.model_wrapped.destroy()
    for parameter in trainer.model.parameters():
        with GatheredParameters([parameter]):
            whole = parameter.detach().to("cpu", copy=True)
        parameter.data = whole
    # Else the next model that this process makes would be spread from its first weight on.
    unset_hf_deepspeed_config()


def refuse(*configurations: Path | None) -> None:
    """Raise InputError for a configuration that spreads weights: stage 5 writes answers between its steps, with whole ones."""
    for path in filter(None, configurations):
        try:
            stage = json.loads(path.read_text()).get("zero_optimization", {}).get("stage", 0)
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: expected DeepSpeed's configuration as JSON, found {error}") from error
        if stage == 3:
            raise InputError(f"{path}: expected a stage of ZeRO below 3 in stage 5, which writes answers, found 3")
