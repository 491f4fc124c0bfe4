"""What the parts of the model share with transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from unimed.errors import InputError
from unimed.model.configuration import UniMedConfig
from unimed.model.sam_decoder import FourierPositions
from unimed.model.sam_med2d import GridAttention, ImageEncoder
from unimed.model.vision import Fusion


@dataclass
class UniMedOutput(CausalLMOutputWithPast):
    """A causal language model's output with, for every `<SEG>`, the logits of its mask."""

    mask_logits: Float[Tensor, "mask size size"] | None = None


class UniMedPreTrainedModel(PreTrainedModel):
    """What all parts share with transformers: configuration, initialisation, strict loading."""

    config: UniMedConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # The loss holds terms that are no sum over label tokens, so the trainer must not rescale it by their count.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initial values of our own modules; fusions start closed. Experts and routers are made at zero and stay there."""
        super()._init_weights(module)
        if isinstance(module, Fusion):
            init.zeros_(module.gate)
        elif isinstance(module, ImageEncoder | GridAttention | FourierPositions):
            module.reset_parameters()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> "UniMedPreTrainedModel":
        """The model of a folder; a missing, unexpected or misshapen tensor is an InputError that names it."""
        # Misshapen tensors are let through only to be named below: transformers' own error does not say which.
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        wrong = {kind: sorted(map(str, names))[:3] for kind, names in info.items() if names}
        if wrong:
            raise InputError(f"{pretrained_model_name_or_path}: expected exactly the tensors of its config.json, found {wrong}")
        return model
