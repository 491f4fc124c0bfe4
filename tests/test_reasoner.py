"""Stage 5 from the folders of the stages before it to a reasoner that loads."""

import pytest
import raw_tree
import tiny
import torch
from problems import OPTIMISATION, SETTINGS, settings
from safetensors.torch import load_file

from components import grpo as component
from unimed.config import MoeRouter
from unimed.model import adapters, artifacts, assemble

PARTS = ("foundation", "aligned", "vqa_expert", "grounding_expert", "router", "reasoner")


@pytest.mark.slow
def test_the_component_writes_a_reasoner_that_loads_as_it_was(tmp_path):
    data = raw_tree.ingested(raw_tree.write(tmp_path / "raw"), tmp_path)
    reasoning, vqa, grounding = (raw_tree.chosen(data, task) for task in ("reasoning", "vqa", "grounding"))
    places = {
        name: tmp_path / "models" / name for name in ("foundation", "aligned", "vqa_expert", "grounding_expert", "router", "reasoner")
    }
    stages(places)
    component.run(reasoning, vqa, grounding, data / "shards", *places.values(), seed=0, grpo=settings(max_completion_length=4))
    tensors = load_file(places["reasoner"] / adapters.WEIGHTS)
    assert any(value.any() for name, value in tensors.items() if "lora_B" in name)
    made = assemble.with_reasoner(places["reasoner"])
    for name, value in adapters.taken(made.model.model.language_model, "reasoner").tensors.items():
        assert torch.equal(value, tensors[adapters.PREFIX + name])
    manifest = artifacts.verify(places["reasoner"])
    assert set(manifest["parents"]) == {"foundation", "aligned", "vqa", "grounding", "router"}
    assert [entry["phase"] for entry in manifest["history"]] == ["cold_start", "cold_start", "grpo", "grpo"]


def stages(places):
    """Folders as the stages before this one leave them, of a model that was only stirred."""
    made = assemble.Assembled(tiny.stirred(), tiny.processor())
    assemble.write_foundation(places["foundation"], made)
    parents = {"foundation": places["foundation"]}
    artifacts.write(places["aligned"], artifacts.named(made.model, assemble.ALIGNED), parents)
    parents["aligned"] = places["aligned"]
    for name, tensors in (("vqa", {}), ("grounding", artifacts.named(made.model, assemble.GROUNDING))):
        language = assemble.aligned(places["foundation"], places["aligned"]).model.model.language_model
        adapters.add(language, name, 2, 2.0, tiny.TARGETS)
        folder = places[f"{name}_expert"]
        adapters.write(folder, adapters.taken(language, name))
        artifacts.write(folder, tensors, parents) if tensors else artifacts.seal(folder, parents)
    folders = {name: places[f"{name}_expert"] for name in ("vqa", "grounding")}
    router = MoeRouter.model_validate(
        OPTIMISATION | {"level": "sequence", "choice": "soft", "turns": 1, "grounding_share": 0.5, "mask_loss": SETTINGS["mask_loss"]}
        | {"balance_weight": 0.01, "z_weight": 0.001}
    )  # fmt: skip
    routed = assemble.routed(places["foundation"], places["aligned"], folders, router).model
    routers = [name for name, _ in routed.named_modules() if name.endswith(".router")]
    parents |= {"vqa": folders["vqa"], "grounding": folders["grounding"]}
    artifacts.write(places["router"], artifacts.named(routed, routers), parents, moe_router=router.model_dump(mode="json"))
