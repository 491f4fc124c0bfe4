"""DeepSpeed's ZeRO, which spreads the optimizer's state over the processes and, in its third stage, every weight.

What a process holds of that state goes into checkpoints and back; a model is whole again after its training.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from torch import distributed
from transformers import Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

from unimed.errors import InputError

log = logging.getLogger("zero")

NAMES = {2: ("base_optimizer_state", "single_partition_of_fp32_groups"), 3: ("optimizer_state_dict", "fp32_flat_groups")}
"""What DeepSpeed calls, in each stage of ZeRO, the state of the optimizer inside and the float32 weights that it steps."""


def configuration(trainer: Trainer) -> dict[str, Any] | None:
    """What a trainer's DeepSpeed is told; None without DeepSpeed."""
    return json.loads(Path(trainer.args.deepspeed).read_text()) if trainer.is_deepspeed_enabled else None


def is_resumable(told: dict[str, Any] | None) -> bool:
    """Whether a training under this configuration can be stored and gone on from: in ZeRO-2 and ZeRO-3 without offload."""
    if told is None:
        return True
    found = HfDeepSpeedConfig(told)
    if (found.is_zero2() or found.is_zero3()) and not found.is_offload():
        return True
    log.warning("no checkpoints under DeepSpeed but in ZeRO-2 and ZeRO-3 without offload: a run that is interrupted starts anew")
    return False


def state_of(optimizer: Any) -> dict[str, Any]:
    """What this process holds of the state of ZeRO's optimizer, in the form of `MasterAdamW`'s."""
    whole = optimizer.state_dict()
    moments, masters = NAMES[whole["zero_stage"]]
    return whole[moments] | {"masters": whole[masters]}


@torch.no_grad()
def restore(optimizer: Any, state: dict[str, Any]) -> None:
    """Give ZeRO's optimizer what `state_of` took in this process, and the model the weights that follow from it in all of them."""
    whole = optimizer.state_dict()
    stage = whole["zero_stage"]
    moments, masters = NAMES[stage]
    whole |= {moments: {name: value for name, value in state.items() if name != "masters"}, masters: state["masters"]}
    optimizer.load_state_dict({distributed.get_rank(): whole}, load_from_fp32_weights=True)
    if stage == 2:
        optimizer.update_lp_params()
    else:
        optimizer.checkpoint_event_epilogue()  # as DeepSpeed does: copies that processes hold of each other's weights are stale


@torch.no_grad()
def gather(trainer: Trainer) -> None:
    """Give each process what trained as the optimizer has it, in float32, and all else whole, on the CPU, where ZeRO had spread it."""
    if not trainer.is_deepspeed_enabled:
        return
    from deepspeed.utils import safe_get_full_fp32_param

    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    masters = {parameter: master for parameter in trained if (master := safe_get_full_fp32_param(parameter)) is not None}
    if is_deepspeed_zero3_enabled():
        _put_together(trainer)
    for parameter, master in masters.items():
        parameter.data = master.to(parameter.device, copy=True)


def _put_together(trainer: Trainer) -> None:
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
