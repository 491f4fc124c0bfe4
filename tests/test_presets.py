"""The full size: its numbers parse, and the model they describe has the parameters of the models it is named after."""

import importlib
import json

import derived
import pytest
import torch
import yaml
from transformers import CLIPVisionConfig, ConvNextConfig

from benchmarks import originals
from components import foundation
from conftest import ROOT
from pipelines import stages
from unimed import params, step
from unimed.config import Vlm
from unimed.errors import InputError
from unimed.model import assemble, foundations, tokenizer
from unimed.model.processor import UniMedProcessor
from unimed.origins import Foundation, OwnFoundation, StandIn
from unimed.settings import Cluster, Gate, Tracking

SHIPPED = params.load((ROOT / "params.yaml").read_text())
FULL = params.load((ROOT / "presets/full.yaml").read_text())
KINDS = {"tracking": Tracking, "cluster": Cluster, "gate": Gate}


@pytest.mark.parametrize("numbers", [SHIPPED, FULL], ids=["as shipped", "full"])
def test_every_section_parses_as_what_its_stage_takes(numbers):
    taken = {}
    for stage in stages.read((ROOT / "dvc.yaml").read_text()):
        taken |= step.sections(importlib.import_module(f"components.{stage.component}").run)
    assert numbers.keys() == (taken | KINDS).keys()
    for name, kind in (taken | KINDS).items():
        params.parse(name, kind, numbers)


@pytest.mark.parametrize("stage", ["align", "vqa_expert", "grounding_expert", "moe_router"])
def test_the_full_size_trains_in_half_precision(stage):
    """Without it the towers stay in the float32 they were released in, and an adapter keeps its input in float32 besides."""
    kind = step.sections(importlib.import_module(f"components.{stage}").run)[stage]
    assert params.parse(stage, kind, FULL).dtype == "bfloat16"


@pytest.mark.parametrize("stage", ["align", "vqa_expert", "grounding_expert", "moe_router", "grpo"])
def test_the_full_size_takes_no_more_samples_at_once_than_a_card_may_hold(stage):
    """At 2,880 tokens for an image of four tiles, whose states take some 9 GB; what is seen at once divides the batch evenly."""
    section = params.parse(stage, step.sections(importlib.import_module(f"components.{stage}").run)[stage], FULL)
    trained = section.cold_start if stage == "grpo" else section
    assert trained.samples_at_once <= 4
    assert trained.batch_size % trained.samples_at_once == 0


def test_a_foundation_is_a_stand_in_or_names_checkpoints():
    assert isinstance(params.parse("foundation", Foundation, SHIPPED), StandIn)
    own = params.parse("foundation", Foundation, FULL)
    assert isinstance(own, OwnFoundation)
    assert str(own.checkpoints.mask.path) == "data/foundation/sam-med2d_b.pth"
    both = {"foundation": FULL["foundation"] | {"cases": 3}}
    with pytest.raises(InputError, match=r"^params.yaml: foundation.cases is not a known key$"):
        params.parse("foundation", Foundation, both)
    with pytest.raises(InputError, match=r"params.yaml: foundation.cases must be > 0, is 0$"):
        params.parse("foundation", Foundation, {"foundation": SHIPPED["foundation"] | {"cases": 0}})


@pytest.mark.parametrize("path", ["/etc/passwd", "raw/../../secret"])
def test_a_checkpoint_lies_in_the_project(path):
    numbers = yaml.safe_load(yaml.safe_dump(FULL))
    numbers["foundation"]["from"]["mask"]["path"] = path
    with pytest.raises(InputError, match=f"foundation.from.mask.path: expected a path within the project, found {path}"):
        params.parse("foundation", Foundation, numbers)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Originals under raw/ in an empty project, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    return derived.written(tmp_path / "raw")


def section(places, **changed):
    """The section `foundation` with these places and, where given, another hash."""
    pins = {name: {"path": f"raw/{place.name}", "md5": changed.get(name, foundation.dvc_hash(place))} for name, place in places.items()}
    return params.parse("foundation", Foundation, {"foundation": {"from": pins}})


def test_the_stage_builds_from_checkpoints_and_records_their_hashes(places, tmp_path):
    given = section(places)
    foundation.run(tmp_path / "models/foundation", 0, originals.VLM, given)
    manifest = json.loads((tmp_path / "models/foundation/manifest.json").read_text())
    assert manifest["checkpoints"]["mask"] == {"path": "raw/sam-med2d_b.pth", "md5": foundation.dvc_hash(places["mask"])}
    assert assemble.foundation(tmp_path / "models/foundation").model.config.mask_config.hidden_size == 16


def test_other_bytes_than_those_pinned_are_refused_before_any_work_and_the_hashes_said(places, tmp_path):
    given = section(places, mask=None)
    digest = foundation.dvc_hash(places["mask"])
    with pytest.raises(InputError, match=f"foundation.from.mask.md5 is None, raw/sam-med2d_b.pth has {digest}; write the hash there"):
        foundation.run(tmp_path / "models/foundation", 0, originals.VLM, given)
    with (places["vision"] / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match=r"foundation.from.vision.md5 is .*, raw/vision has [0-9a-f]{32}.dir; foundation.from.mask.md5"):
        foundation.pinned(given.checkpoints)
    places["mask"].unlink()
    with pytest.raises(InputError, match=r"foundation.from.mask: expected raw/sam-med2d_b.pth, found nothing"):
        foundation.pinned(given.checkpoints)
    assert not (tmp_path / "models").exists()


def test_sizes_are_said_once(places, tmp_path):
    twice = originals.VLM.model_copy(update={"vision": {"hidden_size": 16}})
    with pytest.raises(InputError, match="vlm.vision must not be given where foundation names checkpoints"):
        foundation.run(tmp_path / "models/foundation", 0, twice, section(places))
    nowhere = originals.VLM
    with pytest.raises(InputError, match="vlm must hold vision, detail and text where foundation names no checkpoints"):
        foundation.run(tmp_path / "models/foundation", 0, nowhere, params.parse("foundation", Foundation, SHIPPED))


def count(module):
    """Its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_full_model_has_the_parameters_of_the_models_it_is_named_after(tmp_path):
    full = originals.FULL
    for name, config in (("llama", full.language), ("clip", full.vision), ("convnext", full.detail)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    vlm = params.parse("vlm", Vlm, FULL)
    vision, detail = CLIPVisionConfig.from_pretrained(tmp_path / "clip"), ConvNextConfig.from_pretrained(tmp_path / "convnext")
    words, text = tokenizer.adopt(originals.tokenizer()), foundations.language_config(tmp_path / "llama")
    config = foundations.configuration(vlm, words, vision, detail, text)
    with torch.device("meta"):
        model = assemble.shaped(config)
    assert count(model.model.language_model) + count(model.lm_head) == 8_030_261_248
    assert {tensor.dtype for tensor in model.model.language_model.parameters()} == {torch.bfloat16}
    assert count(model.model.encoder.vision) == 303_507_456
    assert count(model.model.encoder.detail) == 196_230_336
    both = [1024 + width for width in (192, 384, 768, 1536)]
    assert count(model.model.encoder.fusions) == sum(2 * wide + 4096 * (wide + 1) + 4096 * 1024 + 1024 + 1024 for wide in both)
    assert count(model.model.projector) == (1024 + 1) * 4096 + (4096 + 1) * 4096
    assert count(model.grounding.text_hidden_fcs) == (4096 + 1) * 4096 + (4096 + 1) * 256
    assert count(model.grounding.sam) == pytest.approx(267.2e6 + 4.06e6, abs=0.1e6)
    assert (config.image_size, config.tokens_per_view, model.model.encoder.last_block) == (768, 576, 23)
    feed = UniMedProcessor.of(config, words)
    shapes = [(336, 336), (300, 900), (900, 300), (336, 672), (700, 700)]
    assert [feed.tokens(shape) for shape in shapes] == [1728, 2304, 2304, 1728, 2880]
    assert model.model.language_model.config.rope_parameters["rope_type"] == "llama3"
