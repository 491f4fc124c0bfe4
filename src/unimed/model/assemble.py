"""A model put together from the folders that the stages made."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionModel, ConvNextModel
from transformers.initialization import no_init_weights

from unimed.config import MoeRouter
from unimed.model import adapters, artifacts, checkpoint, experts, weights
from unimed.model.configuration import UniMedConfig
from unimed.model.foundations import ADDED_ROWS, EMBEDDING, HEAD, LANGUAGE_MODEL
from unimed.model.processor import UniMedProcessor
from unimed.model.unimed import UniMedForConditionalGeneration

ALIGNED = ["model.projector", "model.encoder.fusions"]
FRESH = [*ALIGNED, "grounding.text_hidden_fcs"]
"""What no foundation holds."""
EXPERTS = ("vqa", "grounding")
EXPERT_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DECODER = [
    "grounding.sam.mask_decoder.transformer",
    "grounding.sam.mask_decoder.iou_token",
    "grounding.sam.mask_decoder.mask_tokens",
    "grounding.sam.mask_decoder.output_upscaling",
    "grounding.sam.mask_decoder.output_hypernetworks_mlps.0",
]
"""The mask decoder without what a single mask never uses: the other masks' networks and the overlap head."""
GROUNDING = ["grounding.seg_input", "grounding.seg_output", "grounding.text_hidden_fcs", *DECODER]
"""What stage 3 trains beside its adapter."""


@dataclass
class Assembled:
    """A model with the processor that feeds it."""

    model: UniMedForConditionalGeneration
    processor: UniMedProcessor


def device() -> torch.device:
    """Where models are asked: the GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def placed(made: Assembled) -> Assembled:
    """The same, its model moved to where models are asked."""
    made.model.to(device())
    return made


def write_foundation(folder: Path, made: Assembled, **facts: object) -> None:
    """Store the towers, the language model and the processor, each in its own folder in Hugging Face's form, and seal them."""
    model = made.model
    model.model.encoder.vision.save_pretrained(folder / "vision")
    model.model.encoder.detail.save_pretrained(folder / "detail")
    language = AutoModelForCausalLM.from_config(model.config.text_config)
    language.model.load_state_dict(model.model.language_model.state_dict())
    language.lm_head.load_state_dict(model.lm_head.state_dict())
    language.save_pretrained(folder / LANGUAGE_MODEL)
    made.processor.save_pretrained(folder / "processor")
    weights.write(folder / "mask", weights.named(model, ["grounding.sam"]), {})
    model.config.save_pretrained(folder)
    artifacts.seal(folder, {}, **facts)


def foundation(folder: Path, **routing: Any) -> Assembled:
    """The model with its frozen parts from a foundation folder and everything else fresh.

    With `routing`, the configuration's fields about experts and routers, it has room for these.
    """
    artifacts.verify(folder)
    config = UniMedConfig.from_pretrained(folder, **routing)
    model = shaped(config)
    _load_language(model, folder)
    model.model.encoder.vision.load_state_dict(CLIPVisionModel.from_pretrained(folder / "vision").state_dict())
    model.model.encoder.detail.load_state_dict(ConvNextModel.from_pretrained(folder / "detail").state_dict())
    sam = weights.read(folder / "mask")
    expected = weights.named(model, ["grounding.sam"])
    checkpoint.check({name: tuple(value.shape) for name, value in sam.items()}, _shapes(expected), folder / "mask")
    weights.load(model, sam, folder / "mask")
    with torch.no_grad():
        model.grounding.seg_input.copy_(model.get_input_embeddings().weight[config.seg_token_id])
        model.grounding.seg_output.copy_(model.lm_head.weight[config.seg_token_id])
    return Assembled(model.eval(), UniMedProcessor.from_pretrained(folder / "processor"))


def shaped(config: UniMedConfig) -> UniMedForConditionalGeneration:
    """A model of the configuration, every part in the type of its weights.

    A language model in half precision is of a size for which drawing initial values that are replaced at once takes minutes; there only
    what no foundation holds has initial values.
    """
    if config.text_config.dtype in (torch.bfloat16, torch.float16):
        with no_init_weights():
            model = UniMedForConditionalGeneration(config)
        for name in FRESH:
            model.get_submodule(name).apply(model._init_weights)
    else:
        model = UniMedForConditionalGeneration(config)
    model.model.encoder.to(config.vision_config.dtype)
    model.model.projector.to(config.vision_config.dtype)
    model.lm_head.to(config.text_config.dtype)
    model.grounding.normalise.to(config.mask_config.dtype)
    model.grounding.sam.to(config.mask_config.dtype)
    return model


@torch.no_grad()
def _load_language(model: UniMedForConditionalGeneration, folder: Path) -> None:
    """Copy the language model's tensors in, one at a time, and after them the rows of the tokens that were added to its vocabulary."""
    place = folder / LANGUAGE_MODEL
    found = checkpoint.read(place)
    state = experts.without(model.model.language_model.state_dict())
    own = {f"model.{name}": value for name, value in state.items()} | {HEAD: model.lm_head.weight}
    known = AutoConfig.from_pretrained(place).vocab_size
    needed = {name: (known, *shape[1:]) if name in (EMBEDDING, HEAD) else shape for name, shape in _shapes(own).items()}
    shapes = found.shapes
    # A head that was tied to the table is in no file; here it becomes one of its own.
    names = {name: name for name in own} | ({} if HEAD in shapes else {HEAD: EMBEDDING})
    checkpoint.check({name: shapes[there] for name, there in names.items() if there in shapes} | shapes, needed, place)
    for name, there in names.items():
        own[name][: shapes[there][0]].copy_(found.tensor(there))
    if (folder / ADDED_ROWS).is_dir():
        rows = weights.read(folder / ADDED_ROWS)
        own[EMBEDDING][rows["tokens"]] = rows["input"]
        own[HEAD][rows["tokens"]] = rows["output"]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, checkpoint.Shape]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def aligned(foundation_folder: Path, folder: Path, **routing: Any) -> Assembled:
    """The foundation with the fusions and the projector of stage 1, with room for experts as in `foundation`."""
    made = foundation(foundation_folder, **routing)
    weights.load(made.model, weights.read(folder), folder)
    return made


def expert(foundation_folder: Path, aligned_folder: Path, folder: Path, name: str) -> Assembled:
    """The aligned model with one expert, as it was at the end of its stage."""
    made = aligned(foundation_folder, aligned_folder)
    listed = artifacts.verify(folder)["files"]
    adapters.load(made.model.model.language_model, name, adapters.read(folder))
    if artifacts.WEIGHTS in listed:
        weights.load(made.model, load_file(folder / artifacts.WEIGHTS), folder)
    return made


def routed(foundation_folder: Path, aligned_folder: Path, expert_folders: dict[str, Path], router: MoeRouter) -> Assembled:
    """The aligned model with all experts stacked beside the language model's linears and untrained routers over them."""
    listed = {folder: artifacts.verify(folder)["files"] for folder in expert_folders.values()}
    found = {name: adapters.read(folder) for name, folder in expert_folders.items()}
    made = aligned(
        foundation_folder, aligned_folder, experts=list(found), expert_ranks=[adapter.rank for adapter in found.values()],
        expert_scalings=[adapter.scaling for adapter in found.values()], router_level=router.level, router_choice=router.choice,
        expert_targets=sorted({target for adapter in found.values() for target in adapter.targets}),
    )  # fmt: skip
    stacked = experts.stack({name: adapter.tensors for name, adapter in found.items()}, made.model.config)
    weights.load(made.model.model.language_model, stacked, aligned_folder)
    for folder, files in listed.items():
        if artifacts.WEIGHTS in files:
            weights.load(made.model, load_file(folder / artifacts.WEIGHTS), folder)
    return made


def trained_router(foundation_folder: Path, aligned_folder: Path, expert_folders: dict[str, Path], folder: Path) -> Assembled:
    """The routed model of stage 4, each part from the folder given."""
    settings = MoeRouter.model_validate(artifacts.verify(folder)["moe_router"])
    made = routed(foundation_folder, aligned_folder, expert_folders, settings)
    weights.load(made.model, weights.read(folder), folder)
    return made


def with_router(folder: Path) -> Assembled:
    """The routed model of stage 4, its parts found beside its folder and verified by hash."""
    parts = {name: artifacts.parent(folder, name) for name in ("foundation", "aligned", *EXPERTS)}
    return trained_router(parts["foundation"], parts["aligned"], {name: parts[name] for name in EXPERTS}, folder)


def with_reasoner(folder: Path) -> Assembled:
    """The reasoning model of stage 5: the routed model with one more adapter that is always on."""
    made = with_router(artifacts.parent(folder, "router"))
    adapters.load(made.model.model.language_model, "reasoner", adapters.read(folder))
    made.model.eval()
    return made
