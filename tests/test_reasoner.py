"""Stage 5 from the folders of the stages before it to a reasoner that loads."""

import pytest
import raw_tree
import torch
from places import ROUTER, stages
from problems import settings
from safetensors.torch import load_file

from components import grpo as component
from unimed.model import adapters, artifacts, assemble, experts, weights


@pytest.mark.slow
def test_the_component_writes_a_reasoner_that_loads_as_it_was(tmp_path):
    data = raw_tree.ingested(raw_tree.write(tmp_path / "raw"), tmp_path)
    reasoning, vqa, grounding = (raw_tree.chosen(data, task) for task in ("reasoning", "vqa", "grounding"))
    places = stages(tmp_path / "models") | {"reasoner": tmp_path / "models" / "reasoner"}
    component.run(reasoning, vqa, grounding, data / "shards", *places.values(), seed=0, grpo=settings(max_completion_length=4))
    tensors = load_file(places["reasoner"] / adapters.WEIGHTS)
    assert any(value.any() for name, value in tensors.items() if "lora_B" in name)
    made = assemble.with_reasoner(places["reasoner"])
    for name, value in adapters.taken(made.model.model.language_model, "reasoner").tensors.items():
        assert torch.equal(value, tensors[adapters.PREFIX + name])
    manifest = artifacts.verify(places["reasoner"])
    assert set(manifest["parents"]) == {"foundation", "aligned", "vqa", "grounding", "router"}
    assert [entry["phase"] for entry in manifest["history"]] == ["cold_start", "cold_start", "grpo", "grpo"]


def test_experts_that_stand_beside_different_linears_keep_all_of_theirs_and_what_they_trained_besides(tmp_path):
    places = stages(tmp_path)
    language = assemble.aligned(places["foundation"], places["aligned"]).model.model.language_model
    adapters.add(language, "grounding", 3, 1.0, ("k_proj", "down_proj"))
    adapters.write(tmp_path / "other", adapters.taken(language, "grounding"))
    weights.write(tmp_path / "other", {"grounding.seg_input": torch.full((32,), 7.0)}, {})
    folders = {"vqa": places["vqa_expert"], "grounding": tmp_path / "other"}
    model = assemble.routed(places["foundation"], places["aligned"], folders, ROUTER).model
    found = experts.unstack(model.model.language_model.state_dict(), model.config)
    for name, folder in folders.items():
        for key, value in adapters.read(folder).tensors.items():
            assert torch.equal(found[name].pop(key), value)
        assert not any(value.any() for value in found[name].values()), "nothing beside the others"
    assert (model.grounding.seg_input == 7).all()
