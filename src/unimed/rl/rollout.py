"""What several answers to one prompt share is done once, in sampling and in the gradient pass: encoding the image, reading the prompt."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from transformers import DynamicCache, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast
from trl import GRPOTrainer

from unimed.model.processor import Message, UniMedProcessor
from unimed.model.unimed import UniMedForConditionalGeneration, UniMedModel
from unimed.rl.siblings import write

Rollout = Callable[[list[list[Message]], GRPOTrainer], dict[str, Any]]


def rollout(processor: UniMedProcessor) -> Rollout:
    """TRL's hook for sampling. It answers `num_generations` equal prompts in a row from one reading of the prompt.

    By `siblings.write` where it can (`together`), else by transformers' generate.
    """

    def answer(prompts: list[list[Message]], trainer: GRPOTrainer) -> dict[str, Any]:
        model, siblings = trainer.accelerator.unwrap_model(trainer.model_wrapped), trainer.num_generations
        fast = together(_capability(model.device), model.dtype, model.config.text_config)
        read = processor.apply_chat_template(prompts[::siblings], tokenize=True, return_dict=True, add_generation_prompt=True)
        images = {name: read[name] for name in ("pixel_values", "image_sizes")}
        inputs = processor.tokenizer.pad({"input_ids": read["input_ids"]}, return_tensors="pt", pad_to_multiple_of=64 if fast else None)
        inputs = {name: tensor.to(model.device) for name, tensor in (inputs | images).items()}
        new = (write if fast else sample)(model, inputs, siblings, trainer.generation_config)
        return {
            "prompt_ids": [ids for ids in read["input_ids"] for _ in range(siblings)],
            "completion_ids": [_through_end(ids, trainer.eos_token_ids) for ids in new.tolist()],
            "logprobs": None,
        }

    return answer


def together(capability: tuple[int, int] | None, dtype: torch.dtype, language: PreTrainedConfig) -> bool:
    """Whether `siblings.write` can write answers: on a GPU with FlashAttention, in half precision, by layers that see all before.

    `capability` is the GPU's, none where there is none.
    """
    whole = {"full_attention"}.issuperset(getattr(language, "layer_types", None) or ())
    return capability is not None and capability >= (8, 0) and dtype in (torch.bfloat16, torch.float16) and whole


def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


@torch.no_grad()
def sample(model: UniMedForConditionalGeneration, inputs: Any, siblings: int, generation_config: Any) -> Int[Tensor, "answer new"]:
    """New tokens of `siblings` answers to each prompt, in the prompts' order; what `generate` gives, for one reading of each."""
    cache = DynamicCache(config=model.config.text_config)
    model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    # `generate` must have a token to go on from; the gates of the whole prompt stay remembered.
    cache.crop(-1)
    rows = torch.arange(len(inputs["input_ids"]), device=model.device).repeat_interleave(siblings)
    _take(cache, rows)
    ids, mask = inputs["input_ids"][rows], inputs["attention_mask"][rows]
    return model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=generation_config)[:, ids.shape[1] :]


def _take(cache: DynamicCache, rows: Int[Tensor, " answer"]) -> None:
    """Let the cache hold these of its rows, in this order, the routers' memory included."""
    cache.batch_select_indices(rows)
    cache.expert_gates = {layer: gates[rows] for layer, gates in getattr(cache, "expert_gates", {}).items()}


def _through_end(ids: list[int], ends: list[int]) -> list[int]:
    """The ids up to and with the first end token."""
    return ids[: next((place for place, token in enumerate(ids, 1) if token in ends), len(ids))]


class SharedPrompts(nn.Module):
    """A backbone that, while it knows how long prompts are, reads equal prompts once, with the gradient of all their answers.

    Everything else is the backbone's own. A prompt has one image. Routers on the sequence level pass no gradient from an answer to
    its prompt.
    """

    def __init__(self, backbone: UniMedModel):
        super().__init__()
        self.backbone = backbone
        self.length = 0

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("backbone"), name)

    @contextmanager
    def prompts_of(self, length: int) -> Iterator[None]:
        """Within the block the first `length` positions of every row are its prompt."""
        self.length = length
        try:
            yield
        finally:
            self.length = 0

    def forward(self, **inputs: Any) -> BaseModelOutputWithPast:
        """The hidden states that the backbone gives."""
        return self._shared(**inputs) if self.length else self.backbone(**inputs)

    def _shared(
        self,
        input_ids: Int[Tensor, "answer seq"],
        attention_mask: Int[Tensor, "answer seq"],
        pixel_values: Float[Tensor, "answer *view channel size size"],
        image_sizes: Int[Tensor, "answer 2"] | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        prompt, answer = input_ids[:, : self.length], input_ids[:, self.length :]
        images = {"pixel_values": pixel_values} | ({} if image_sizes is None else {"image_sizes": image_sizes})
        # With their sizes, because black pixels are alike and may still lie on other canvases.
        asked = prompt if image_sizes is None else torch.cat([prompt, image_sizes], 1)
        first, copy_of = first_alike(asked, pixel_values).unique(return_inverse=True)
        cache = DynamicCache(config=self.backbone.config.text_config)
        mask = attention_mask[first, : self.length]
        images = {name: tensor[first] for name, tensor in images.items()}
        read = self.backbone(input_ids=prompt[first], attention_mask=mask, **images, past_key_values=cache, use_cache=True)
        _take(cache, copy_of)
        said = self.backbone(input_ids=answer, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        return BaseModelOutputWithPast(last_hidden_state=torch.cat([read.last_hidden_state[copy_of], said.last_hidden_state], 1))


def first_alike(prompts: Int[Tensor, "row seq"], pixels: Float[Tensor, "row *view channel size size"]) -> Int[Tensor, " row"]:
    """For every row the number of the first with the same prompt and the same pixels."""
    number = torch.arange(len(prompts), device=prompts.device)
    marks = torch.cat([prompts, adaptive_avg_pool2d(pixels.flatten(1, -3), 4).flatten(1)], 1)
    _, group = marks.unique(dim=0, return_inverse=True)
    first = torch.full_like(number, len(prompts)).scatter_reduce(0, group, number, "amin")[group]
    same = (prompts == prompts[first]).all(1) & (pixels == pixels[first]).flatten(1).all(1)
    return torch.where(same, first, number)


@contextmanager
def sharing_prompts(model: UniMedForConditionalGeneration) -> Iterator[SharedPrompts]:
    """Within the block the model's backbone is one that can share prompts."""
    backbone = model.model
    model.model = SharedPrompts(backbone)
    try:
        yield model.model
    finally:
        model.model = backbone
