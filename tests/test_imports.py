"""LLaVA-1.5 and MedPLIB in their own layouts become folders that the stages accept, with the same numbers where nothing is lost."""

import json

import derived
import pytest
import tiny
import torch
from places import ROUTER
from safetensors.torch import load_file
from typer.testing import CliRunner

from benchmarks import originals
from unimed import predict
from unimed.cli import app
from unimed.data.records import SEG
from unimed.errors import InputError
from unimed.model import artifacts, assemble, foundations, imports, low_rank, weights
from unimed.model.processor import IMAGE

MATRICES = ("gate_proj", "up_proj", "down_proj")
EXPERT = "model.layers.{}.mlp.deepspeed_moe.experts.deepspeed_experts.{}.{}.weight"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Originals, LLaVA around the same language model, and MedPLIB made from it."""
    root = tmp_path_factory.mktemp("raw")
    places = derived.written(root)
    language, tower = derived.read_language(places["language_model"]), originals.clip(root / "again")
    llava = derived.llava(root / "llava", language, tower)
    medplib = derived.medplib(root / "medplib", language, tower, originals.sam_med2d(root / "again.pth"))
    return {"places": places, "root": root, "llava": llava, "medplib": medplib, "language": language}


@pytest.fixture
def models(raw, tmp_path):
    """A folder with the foundation."""
    foundations.write(tmp_path / "foundation", originals.VLM, raw["places"])
    return tmp_path


@pytest.fixture(scope="module")
def imported(raw, tmp_path_factory):
    """MedPLIB imported at a rank that holds all of it."""
    models = tmp_path_factory.mktemp("models")
    foundations.write(models / "foundation", originals.VLM, raw["places"])
    folds = imports.run(raw["root"] / "medplib", models / "foundation", models, rank=4)
    return models, folds


def test_llava_becomes_an_aligned_model(raw, models):
    assert imports.run(raw["root"] / "llava", models / "foundation", models, rank=4) == {"aligned": None}
    made = assemble.aligned(models / "foundation", models / "aligned").model
    for ours, theirs in (("fc1", 0), ("fc2", 2)):
        for kind in ("weight", "bias"):
            assert torch.equal(getattr(made.model.projector.get_submodule(ours), kind), raw["llava"][f"model.mm_projector.{theirs}.{kind}"])
    pixels = torch.rand(1, 3, 32, 32)
    plain = made.model.encoder.plain_tokens(pixels)[:, 1:]
    assert torch.equal(made.model.encoder(pixels), plain)
    projected = torch.nn.functional.gelu(plain @ raw["llava"]["model.mm_projector.0.weight"].T + raw["llava"]["model.mm_projector.0.bias"])
    expected = projected @ raw["llava"]["model.mm_projector.2.weight"].T + raw["llava"]["model.mm_projector.2.bias"]
    assert torch.allclose(made.model.image_features(pixels), expected, atol=1e-4)
    manifest = artifacts.verify(models / "aligned")
    assert manifest["imported"]["name"] == "llava"
    assert manifest["imported"]["left_aside"] == 3
    assert {name.split(".")[2] for name in weights.read(models / "aligned") if "fusions" in name} == {"fusions"}


@pytest.mark.parametrize(("name", "number"), [("grounding", 0), ("vqa", 1)])
def test_an_expert_is_the_base_plus_its_adapter(raw, imported, name, number):
    models, _ = imported
    made = assemble.expert(models / "foundation", models / "aligned", models / f"{name}_expert", name)
    layers = made.model.model.language_model.layers
    for layer in range(2):
        for part in MATRICES:
            linear = layers[layer].mlp.get_submodule(part)
            whole = linear.base_layer.weight.float() + linear.get_delta_weight(name)
            assert torch.allclose(whole, raw["medplib"][EXPERT.format(layer, number, part)], atol=1e-5)
        query = layers[layer].self_attn.q_proj
        whole = query.base_layer.weight.float() + query.get_delta_weight(name)
        assert torch.allclose(whole, raw["medplib"][f"model.layers.{layer}.self_attn.q_proj.weight"], atol=1e-5)
        assert not layers[layer].self_attn.o_proj.get_delta_weight(name).abs().max() > 1e-6


def test_what_points_comes_with_rows_projection_and_mask_decoder(raw, imported):
    models, _ = imported
    model = assemble.expert(models / "foundation", models / "aligned", models / "grounding_expert", "grounding").model
    row = torch.arange(32.0, 64.0) / 64
    assert torch.equal(model.grounding.seg_input, row)
    assert torch.equal(model.grounding.seg_output, -row)
    for number in (0, 2):
        expected = raw["medplib"][f"model.text_hidden_fcs.0.{number}.weight"]
        assert torch.equal(model.grounding.text_hidden_fcs[number].weight, expected)
    for name, value in model.grounding.sam.state_dict().items():
        assert torch.equal(value, raw["medplib"][f"model.visual_model.{name}"])


def test_what_folding_loses_is_what_the_singular_values_say(raw, models):
    folds = imports.run(raw["root"] / "medplib", models / "foundation", models, rank=1)
    base = {name: value.double() for name, value in raw["language"].items()}
    whole = lost = 0.0
    for part in MATRICES:
        change = raw["medplib"][EXPERT.format(1, 0, part)].double() - base[f"model.layers.1.mlp.{part}.weight"]
        values = torch.linalg.svdvals(change)
        whole, lost = whole + values.square().sum(), lost + values[1:].square().sum()
    query = raw["medplib"]["model.layers.1.self_attn.q_proj.weight"].double() - base["model.layers.1.self_attn.q_proj.weight"]
    expected = float((lost / (whole + query.square().sum())).sqrt())
    assert expected > 0.1
    assert folds["grounding_expert"].errors()[1] == pytest.approx(expected, abs=1e-4)
    assert folds["vqa_expert"].error() < 1e-4
    facts = artifacts.verify(models / "grounding_expert")["folded"]
    assert facts == {
        "rank": 1, "relative_error": folds["grounding_expert"].error(), "relative_error_by_layer": folds["grounding_expert"].errors()
    }  # fmt: skip


def test_at_a_rank_that_holds_the_change_nothing_is_lost(imported):
    assert max(imported[1]["grounding_expert"].errors() + imported[1]["vqa_expert"].errors()) < 1e-4


def test_predict_and_the_router_take_what_was_imported(imported):
    models, _ = imported
    for name in ("vqa", "grounding"):
        made = predict.load(models / f"{name}_expert")
        text = made.processor.apply_chat_template([[{"role": "user", "content": f"{IMAGE}Is it? {SEG}"}]], add_generation_prompt=True)
        batch = made.processor(images=[tiny.picture(1)], text=text, return_tensors="pt")
        assert torch.isfinite(made.model(**batch, segment=True).mask_logits).all()
    experts = {name: models / f"{name}_expert" for name in assemble.EXPERTS}
    routed = assemble.routed(models / "foundation", models / "aligned", experts, ROUTER).model
    linear = routed.model.language_model.layers[0].mlp.up_proj
    assert (linear.weight.dtype, linear.expert_in.dtype, routed.lm_head.weight.dtype) == (torch.bfloat16,) * 3
    out = routed(**batch, labels=batch["input_ids"])
    assert torch.isfinite(out.loss)
    assert torch.equal(routed.model.language_model.layers[0].router.linear.weight, torch.zeros(2, 32))


def test_medplib_can_be_its_own_foundation(raw, tmp_path):
    """Its second expert then stands for the layers, so answering needs no change and pointing only the experts' difference."""
    source = raw["root"] / "medplib"
    for file in raw["places"]["language_model"].glob("*token*"):
        if file.name != "added_tokens.json":
            (source / file.name).write_bytes(file.read_bytes())
    (source / "chat_template.jinja").write_text(originals.TEMPLATE)
    foundations.write(tmp_path / "foundation", originals.VLM, raw["places"] | {"language_model": source})
    assert {file.suffix for file in (tmp_path / "foundation/language_model").iterdir()} == {".safetensors", ".json"}
    loaded = derived.read_language(tmp_path / "foundation/language_model")
    assert loaded.keys() == raw["language"].keys()
    assert torch.equal(loaded["model.layers.1.mlp.up_proj.weight"], raw["medplib"][EXPERT.format(1, 1, "up_proj")])
    folds = imports.run(source, tmp_path / "foundation", tmp_path, rank=4)
    assert folds["vqa_expert"].error() == 0
    assert folds["grounding_expert"].error() < 1e-4
    assert sum(folds["grounding_expert"].change) > 0
    halves = load_file(tmp_path / "vqa_expert/adapter_model.safetensors")
    assert not any(value.any() for name, value in halves.items() if "lora_B" in name)
    assert all(value.any(1).all() for name, value in halves.items() if "lora_A" in name)


@pytest.mark.parametrize(("part", "found"), [("", "0.25"), ("_proj.", r"0.\d+")])
def test_a_language_model_that_is_another_is_refused_with_the_remedy(raw, models, part, found):
    other = {name: value * (1.25 if part in name else 1) for name, value in raw["language"].items()}
    other |= {name: other[name][:9] for name in ("model.embed_tokens.weight", "lm_head.weight")}  # rows that both have are compared
    derived.llava(models / "raw/llava", other)
    with pytest.raises(InputError, match=f"language_model, found a relative difference of {found}; make the foundation from this"):
        imports.run(models / "raw/llava", models / "foundation", models, rank=4)
    assert not (models / "aligned").exists()


TOWERS = ["model.vision_tower.vision_tower.vision_model.post_layernorm.weight", "model.visual_model.image_encoder.pos_embed"]


@pytest.mark.parametrize("part", TOWERS)
def test_towers_that_are_others_are_refused(raw, models, part):
    changed = raw["medplib"] | {part: raw["medplib"][part] * 3 + 1}
    folder = models / "raw"
    folder.mkdir()
    for name in ("config.json", "added_tokens.json"):
        (folder / name).write_bytes((raw["root"] / "medplib" / name).read_bytes())
    derived.shards(folder, changed)
    with pytest.raises(InputError, match=rf"foundation/{'vision' if 'tower' in part else 'mask'}, found a relative difference"):
        imports.run(folder, models / "foundation", models, rank=4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("model.mm_projector.2.bias"), r"found 1 missing \(model.projector.fc2.bias\)"),
        (lambda t: t.update({"model.surprise": torch.zeros(1)}), r"found 1 unexpected \(model.language_model.surprise\)"),
        (
            lambda t: t.update({"model.mm_projector.0.weight": torch.zeros(32, 8)}),
            r"\(model.projector.fc1.weight \(32, 8\) for ",
        ),
        (lambda t: t.pop(EXPERT.format(1, 0, "up_proj")), r"found 1 missing \(expert.0.layers.1.mlp.up_proj.weight\)"),
        (
            lambda t: t.update({EXPERT.format(1, 2, "up_proj"): torch.zeros(48, 32)}),
            r"1 unexpected \(expert.2.layers.1.mlp.up_proj",
        ),
        (lambda t: t.pop("model.visual_model.mask_decoder.iou_token.weight"), r"1 missing \(grounding.sam.mask_decoder.iou_token.weight\)"),
        (lambda t: [t.pop(name) for name in [*t] if "visual_model" in name], r"found \d+ missing \(grounding.sam.image_encoder"),
        (lambda t: t.pop("model.text_hidden_fcs.0.2.bias"), r"1 missing \(grounding.text_hidden_fcs.2.bias\)"),
    ],
)
def test_a_checkpoint_in_pieces_is_refused_by_name(raw, models, change, sentence):
    tensors = dict(raw["medplib"])
    change(tensors)
    folder = models / "raw"
    folder.mkdir()
    (folder / "config.json").write_bytes((raw["root"] / "medplib/config.json").read_bytes())
    derived.shards(folder, tensors, pickled=False)
    with pytest.raises(InputError, match=sentence):
        imports.run(folder, models / "foundation", models, rank=4)


def test_the_command_prints_every_layer_s_error_and_where_the_folders_are(raw, models):
    words = ["import", "--from", str(raw["root"] / "medplib"), "--foundation", str(models / "foundation"), "--out", str(models)]
    said = CliRunner().invoke(app, [*words, "--rank", "4"])
    assert said.exit_code == 0, said.output
    assert "grounding_expert layer 1: relative error 0.0000" in said.output
    assert f"wrote {models / 'vqa_expert'}, relative error 0.0000 in all at rank 4" in said.output
    again = CliRunner().invoke(app, words)
    assert isinstance(again.exception, InputError)
    assert f"{models / 'aligned'}: expected no such folder yet" in str(again.exception)


def test_folders_must_lie_beside_the_foundation_and_ranks_must_fit(raw, models):
    with pytest.raises(InputError, match="expected the folder that .*foundation lies in"):
        imports.run(raw["root"] / "llava", models / "foundation", models / "elsewhere", rank=4)
    with pytest.raises(InputError, match=r"--rank 33: expected at most the smaller side of layers.0.self_attn.q_proj.weight, found 32"):
        low_rank.low_rank(torch.zeros(32, 32), 33, "layers.0.self_attn.q_proj.weight")


def test_a_projector_of_another_layer_is_refused(raw, models):
    folder = models / "raw"
    derived.llava(folder, raw["language"])
    settings = json.loads((folder / "config.json").read_text()) | {"mm_vision_select_layer": -1}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="expected a projector of ViT layer -2, as in the foundation, found -1"):
        imports.run(folder, models / "foundation", models, rank=4)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_the_decomposition_is_the_best_of_its_rank(rank):
    """Eckart and Young: what is left out is the sum of the squared singular values beyond the rank."""
    draw = torch.Generator().manual_seed(3)
    change = torch.randn(60, 90, generator=draw) * torch.linspace(1, 0.05, 90)
    inner, outer, lost = low_rank.low_rank(change, rank, "a linear")
    assert (inner.shape, outer.shape) == ((rank, 90), (60, rank))
    best = torch.linalg.svdvals(change.double())[rank:].square().sum()
    assert lost == pytest.approx(float(best), rel=1e-3)
    assert torch.allclose(inner @ inner.T, torch.eye(rank), atol=1e-5)
