"""Folders as the stages leave them, of a model so small that every test can make its own."""

from pathlib import Path

import tiny
from problems import OPTIMISATION, SETTINGS

from unimed.config import MoeRouter
from unimed.model import adapters, artifacts, assemble, weights

ROUTER = MoeRouter.model_validate(
    OPTIMISATION | {"level": "sequence", "choice": "soft", "turns": 1, "grounding_share": 0.5, "mask_loss": SETTINGS["mask_loss"]}
    | {"balance_weight": 0.01, "z_weight": 0.001}
)  # fmt: skip


def stages(root: Path) -> dict[str, Path]:
    """The folders of stages 1 to 4 under `root`, by name, of a model that was only stirred."""
    places = {name: root / name for name in ("foundation", "aligned", "vqa_expert", "grounding_expert", "router")}
    made = assemble.Assembled(tiny.stirred(), tiny.processor())
    assemble.write_foundation(places["foundation"], made)
    parents = {"foundation": places["foundation"]}
    weights.write(places["aligned"], weights.named(made.model, assemble.ALIGNED), parents)
    parents["aligned"] = places["aligned"]
    for name, tensors in (("vqa", {}), ("grounding", weights.named(made.model, assemble.GROUNDING))):
        language = assemble.aligned(places["foundation"], places["aligned"]).model.model.language_model
        adapters.add(language, name, 2, 2.0, tiny.TARGETS)
        folder = places[f"{name}_expert"]
        adapters.write(folder, adapters.taken(language, name))
        weights.write(folder, tensors, parents) if tensors else artifacts.seal(folder, parents)
    folders = {name: places[f"{name}_expert"] for name in ("vqa", "grounding")}
    routed = assemble.routed(places["foundation"], places["aligned"], folders, ROUTER).model
    routers = [name for name, _ in routed.named_modules() if name.endswith(".router")]
    parents |= {"vqa": folders["vqa"], "grounding": folders["grounding"]}
    weights.write(places["router"], weights.named(routed, routers), parents, moe_router=ROUTER.model_dump(mode="json"))
    return places


def reasoner(places: dict[str, Path]) -> Path:
    """The folder of stage 5 beside them, its adapter stirred too."""
    folder = places["router"].parent / "reasoner"
    experts = {name: places[f"{name}_expert"] for name in ("vqa", "grounding")}
    language = assemble.trained_router(places["foundation"], places["aligned"], experts, places["router"]).model.model.language_model
    adapters.add(language, "reasoner", 2, 2.0, tiny.TARGETS)
    adapters.write(folder, adapters.taken(language, "reasoner"))
    artifacts.seal(folder, {name: places[name] for name in ("foundation", "aligned", "router")} | experts)
    return folder
