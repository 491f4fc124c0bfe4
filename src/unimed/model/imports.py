"""LLaVA-1.5 and MedPLIB checkpoints as folders that stages 1 to 3 would have made, for those who want to go on from them.

LLaVA-1.5: Liu et al. 2023, arXiv:2310.03744. MedPLIB: Huang et al. 2024, arXiv:2412.09278; expert 0 points, expert 1 answers.
Not carried over: MedPLIB's routers, which work per token and scale the layer's output, and its projection of regions.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unimed.data.records import SEG
from unimed.errors import InputError
from unimed.hashes import dvc_hash
from unimed.model import adapters, artifacts, assemble, checkpoint, weights
from unimed.model.checkpoint import Checkpoint, Rules, Shape
from unimed.model.configuration import UniMedConfig
from unimed.model.foundations import EMBEDDING, HEAD, LANGUAGE_MODEL
from unimed.model.low_rank import Fold, low_rank
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.progress import track

EXPERTS = {"grounding": 0, "vqa": 1}
"""MedPLIB's numbers of the experts."""

LANGUAGE, VISION, MASK = "model.language_model.", "model.encoder.vision.", "grounding.sam."
GROUNDING = ("grounding.text_hidden_fcs.", "grounding.sam.mask_decoder.")

NAMES: Rules = (
    (r".*\.rotary_emb\.inv_freq|.*\.position_ids", None),  # computed, not learned
    (r".*\.mlp\.deepspeed_moe\.gate\.wg\.weight|model\.region_fea_adapter\..*", None),
    (r"model\.mm_projector\.0\.(.*)", r"model.projector.fc1.\1"),
    (r"model\.mm_projector\.2\.(.*)", r"model.projector.fc2.\1"),
    (r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?(.*)", rf"{VISION}\1"),
    (r"model\.visual_model\.(.*)", rf"{MASK}\1"),
    (r"model\.text_hidden_fcs\.0\.(.*)", r"grounding.text_hidden_fcs.\1"),
    (r"model\.(layers\.\d+\.mlp)\.deepspeed_moe\.experts\.deepspeed_experts\.(\d+)\.(.*)", r"expert.\2.\1.\3"),
    (r"model\.(.*)", rf"{LANGUAGE}\1"),
)

SAME = 0.01
"""Relative difference up to which tensors count as the foundation's; rounding to bf16 makes about 0.002."""


@dataclass(frozen=True)
class Import:
    """A checkpoint beside the foundation that it goes with, every tensor by our name."""

    found: Checkpoint
    names: Mapping[str, str]
    foundation: Path
    model: UniMedForConditionalGeneration
    """The model of the foundation, without numbers."""

    facts: Mapping[str, object]
    """What is known of the checkpoint, for the manifests."""

    def tensor(self, name: str) -> Tensor:
        """A tensor of the checkpoint."""
        return self.found.tensor(self.names[name])

    def starting(self, *beginnings: str) -> dict[str, Tensor]:
        """The checkpoint's tensors whose names begin so."""
        return {name: self.tensor(name).float().clone() for name in sorted(self.names) if name.startswith(beginnings)}


def run(source: Path, foundation: Path, out: Path, rank: int) -> dict[str, Fold | None]:
    """Write the folders `aligned` and, for what points, `vqa_expert` and `grounding_expert`; returns them with what folding lost.

    Raises InputError when the checkpoint does not go with the foundation, when a tensor is missing, unexpected or of another shape, and
    when a folder is there already.
    """
    given = _opened(source, foundation)
    wanted = [name for name in EXPERTS if _has(given, f"expert.{EXPERTS[name]}.")]
    wanted = wanted or ["grounding"] * _has(given, GROUNDING[0])
    places = {"aligned": out / "aligned"} | {name: out / f"{name}_expert" for name in wanted}
    _check_places(places, foundation, out)
    _check_same(given, folded=bool(wanted))
    seg = seg_id(source) if wanted else 0
    parents = {"foundation": foundation}
    weights.write(places["aligned"], {**_fusions(given.model), **given.starting("model.projector.")}, parents, imported=given.facts)
    folds: dict[str, Fold | None] = {"aligned": None}
    for name in wanted:
        adapter, folds[f"{name}_expert"] = folded(given, EXPERTS[name], rank, f"folding {name}")
        adapters.write(places[name], adapter)
        facts = {"imported": given.facts, "folded": folds[f"{name}_expert"].facts()}
        parents = {"foundation": foundation, "aligned": places["aligned"]}
        if name == "grounding":
            weights.write(places[name], _pointing(given, seg), parents, **facts)
        else:
            artifacts.seal(places[name], parents, **facts)
    return folds


def _pointing(given: Import, seg: int) -> dict[str, Tensor]:
    """What the grounding expert has beside its adapter: `<SEG>`'s rows, the projection of its state and the mask decoder."""
    rows = {"grounding.seg_input": given.tensor(f"{LANGUAGE}embed_tokens.weight")[seg], "grounding.seg_output": given.tensor(HEAD)[seg]}
    return given.starting(*GROUNDING) | {name: row.float().clone() for name, row in rows.items()}


def _opened(source: Path, foundation: Path) -> Import:
    """The checkpoint, its names and shapes held to the foundation's model."""
    artifacts.verify(foundation)
    config = UniMedConfig.from_pretrained(foundation)
    with torch.device("meta"):
        model = assemble.shaped(config)
    found = checkpoint.read(source)
    shapes = found.shapes
    names, aside = checkpoint.renamed(shapes, NAMES, source)
    checkpoint.check({own: shapes[there] for own, there in names.items()}, _needed(names, shapes, model), source)
    if (layer := checkpoint.settings(source).get("mm_vision_select_layer", config.vision_feature_layer)) != config.vision_feature_layer:
        raise InputError(f"{source}: expected a projector of ViT layer {config.vision_feature_layer}, as in the foundation, found {layer}")
    return Import(found, names, foundation, model, {"name": source.name, "md5": dvc_hash(source), "left_aside": len(aside)})


def _has(given: Import, beginning: str) -> bool:
    return any(name.startswith(beginning) for name in given.names)


def _needed(names: Mapping[str, str], shapes: Mapping[str, Shape], model: UniMedForConditionalGeneration) -> dict[str, Shape]:
    """What a checkpoint with these names must consist of: projector, language model, and whole any other part of which it has something."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    parts = [part for part in (VISION, MASK, GROUNDING[0]) if any(name.startswith(part) for name in names)]
    parts += [MASK] if GROUNDING[0] in parts else []
    needed = {name: shape for name, shape in own.items() if name.startswith(("model.projector.", LANGUAGE, *parts)) or name == HEAD}
    for table in (HEAD, f"{LANGUAGE}embed_tokens.weight"):
        # Each has tokens of its own; how many is no fault.
        needed[table] = (shapes[names[table]][0], *needed[table][1:]) if table in names else needed[table]
    for number in EXPERTS.values():
        for name in [name for name in own if f".{LANGUAGE}layers." in f".{name}" and ".mlp." in name]:
            layer = name.removeprefix(LANGUAGE)
            if any(other.startswith(f"expert.{number}.{layer.rpartition('.mlp.')[0]}.") for other in names):
                needed[f"expert.{number}.{layer}"] = own[name]
                needed.pop(name, None)
    return needed


def _check_places(places: Mapping[str, Path], foundation: Path, out: Path) -> None:
    """Raise InputError unless the folders are free and lie beside the foundation, where their parents are looked for."""
    if out.resolve() != foundation.resolve().parent:
        raise InputError(f"--out {out}: expected the folder that {foundation} lies in, since a model's parts lie beside it, found another")
    if taken := [place for place in places.values() if place.exists()]:
        raise InputError(f"{taken[0]}: expected no such folder yet, found one; move it away first")


def _check_same(given: Import, folded: bool) -> None:
    """Raise InputError where the checkpoint differs from the foundation in what an import cannot carry over."""
    linears = tuple(f".{target}.weight" for target in assemble.EXPERT_TARGETS)
    language = [name for name in given.names if name == HEAD or (name.startswith(LANGUAGE) and not (folded and name.endswith(linears)))]
    vision = [name for name in given.names if name.startswith(VISION)]
    mask = [name for name in given.names if name.startswith(MASK) and not name.startswith(GROUNDING)]
    for folder, names in ((LANGUAGE_MODEL, language), ("vision", vision), ("mask", mask)):
        difference = _difference(given, checkpoint.read(given.foundation / folder), names)
        if difference > SAME:
            found = f"found a relative difference of {difference:.2g}; make the foundation from this checkpoint"
            raise InputError(f"{given.found.source}: expected the numbers of {given.foundation / folder}, {found}")


def _difference(given: Import, base: Checkpoint, names: list[str]) -> float:
    """The norm of the difference over the norm of the foundation's tensors, in the rows that both have."""
    off = whole = 0.0
    for name in names:
        theirs = given.tensor(name).float()
        own = base.tensor(_in_foundation(name, base)).float()
        rows = min(len(own), len(theirs))
        off += float((theirs[:rows] - own[:rows]).square().sum())
        whole += float(own[:rows].square().sum())
    return (off / whole) ** 0.5 if off else 0.0


def _in_foundation(name: str, base: Checkpoint) -> str:
    """What a tensor is called in the foundation's own folders, each of which is in the form of what it came from."""
    if name == HEAD and name not in base.shapes:
        return EMBEDDING
    return name.removeprefix(VISION) if name.startswith(VISION) else name.replace(LANGUAGE, "model.")


def _fusions(model: UniMedForConditionalGeneration) -> dict[str, Tensor]:
    """Fresh fusions, which change nothing until they are trained."""
    fusions = model.model.encoder.fusions.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fusions.apply(model._init_weights)
    return {f"model.encoder.fusions.{name}": value for name, value in fusions.state_dict().items()}


def folded(given: Import, number: int, rank: int, label: str) -> tuple[adapters.Adapter, Fold]:
    """An expert's change from the foundation as an adapter on all linears of the language model, and what that lost."""
    base, fold = checkpoint.read(given.foundation / LANGUAGE_MODEL), Fold(rank)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors: dict[str, Tensor] = {}
    linears = list(_linears(given.model))
    for name in track(linears, len(linears), label):
        theirs = f"expert.{number}.{name}" if f"expert.{number}.{name}" in given.names else f"{LANGUAGE}{name}"
        change = given.tensor(theirs).to(device, torch.float32) - base.tensor(f"model.{name}").to(device, torch.float32)
        inner, outer, lost = low_rank(change, rank, name)
        linear = name.removesuffix(".weight")
        tensors |= {f"{linear}.lora_A.weight": inner.cpu(), f"{linear}.lora_B.weight": outer.cpu()}
        fold.add(int(name.split(".")[1]), float(change.square().sum()), lost)
    return adapters.Adapter(tensors, rank, 1.0, assemble.EXPERT_TARGETS), fold


def _linears(model: UniMedForConditionalGeneration) -> Iterator[str]:
    targets = tuple(f".{target}.weight" for target in assemble.EXPERT_TARGETS)
    return (name for name in model.model.language_model.state_dict() if name.endswith(targets))


def seg_id(source: Path) -> int:
    """The number of `<SEG>` in a checkpoint's own tokenizer. Raises InputError when it has none."""
    listed = source / "added_tokens.json"
    if listed.is_file():
        added = json.loads(listed.read_text())
    elif (source / "tokenizer.json").is_file():
        added = {token["content"]: token["id"] for token in json.loads((source / "tokenizer.json").read_text())["added_tokens"]}
    else:
        raise InputError(f"{source}: expected added_tokens.json or tokenizer.json, found neither")
    if SEG not in added:
        raise InputError(f"{source}: expected a tokenizer that knows {SEG}, found one that does not")
    return int(added[SEG])
