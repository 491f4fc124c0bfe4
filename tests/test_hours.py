"""GPU hours told before a run: from operations counted by hand, and from shares that the docs tell in the same numbers."""

import re

import pytest
import yaml
from problems import settings as rewarded
from transformers import CLIPVisionConfig, ConvNextConfig, LlamaConfig

from benchmarks.shapes import config as full_size
from conftest import ROOT
from pipelines import hours
from pipelines.hours import Line, Sample
from unimed import params, throughput
from unimed.config import LoraTraining
from unimed.model.configuration import UniMedConfig
from unimed.origins import Foundation
from unimed.sections import Optimisation
from unimed.throughput import BANDWIDTH, MEASURED, RATE, Measured

DOCS = (ROOT / "docs/performance.md").read_text()
ROWS = {cells[0]: cells[1:] for line in DOCS.splitlines() if (cells := [cell.strip() for cell in line.strip("|").split("|")])}
FULL = params.load((ROOT / "presets/full.yaml").read_text())
HALF = Measured("a row", words=10, share=0.5, time=2.0)
NUMBERS = {"batch_size": 10, "max_steps": 5, "learning_rate": 0.1}
IMAGE = 2 * 480 + 1752 + 490 + 64
"""Two blocks of the ViT, the detail tower, what joins them and the projector."""


def config(**changes) -> UniMedConfig:
    """A model whose operations can be counted by hand."""
    text = LlamaConfig(vocab_size=5, hidden_size=2, intermediate_size=3, num_hidden_layers=1, num_attention_heads=1)
    vision = CLIPVisionConfig(hidden_size=2, intermediate_size=3, num_hidden_layers=2, num_attention_heads=1, image_size=4, patch_size=2)
    detail = ConvNextConfig(hidden_sizes=[3], depths=[1], num_stages=1, patch_size=2)
    shape = {"fusion_blocks": [1], "fusion_hidden_size": 7, "vision_feature_layer": -1}
    return UniMedConfig(vision_config=vision, detail_config=detail, text_config=text, **shape | changes)


def test_operations_are_those_counted_by_hand():
    """34 weights in linears: 8 in query and output, 8 in key and value, 18 in the gated layer."""
    assert throughput.linears(config()) == 34
    assert throughput.flops(config(), 0, 10, 4) == 4 * 34 * 10 + 6 * 2 * 100 + 4 * 2 * 5 * 4
    assert throughput.flops(config(), 2, 10, 0) == 4 * 34 * 10 + 6 * 2 * 100 + 2 * IMAGE
    assert throughput.flops(config(), 1, 10, 0, fused=True) == 4 * 34 * 10 + 6 * 2 * 100 + IMAGE + 480 + 2 * 490 + 2 * 64


def test_a_training_takes_its_samples_at_the_limit_and_at_the_measured_share_and_time():
    found = hours.training("vqa_expert", Optimisation(**NUMBERS), HALF, config())
    sample = 4 * 34 * 14 + 12 * 14**2 + 40 * 10 + IMAGE
    assert found.limit == pytest.approx((50 * sample / RATE,) * 2)
    assert found.expected == pytest.approx((50 * sample / RATE * 2.0 / 0.5,) * 2)
    assert (found.steps, found.as_measured) == (5, False)
    align = hours.training("align", Optimisation(**NUMBERS), HALF, config())
    assert align.limit[0] == pytest.approx(50 * (sample + 480 + 2 * 490 + 2 * 64) / RATE)


def test_samples_lie_between_the_smallest_canvas_with_one_turn_and_the_largest_with_all():
    lora = LoraTraining(**NUMBERS, rank=1, scaling=1.0, turns=3)
    found = hours.training("vqa_expert", lora, HALF, config(canvases=[[2, 2], [1, 2]]))
    small, large = 4 * 34 * 22 + 12 * 22**2 + 400 + 3 * IMAGE, 4 * 34 * 50 + 12 * 50**2 + 1200 + 5 * IMAGE
    assert found.limit == pytest.approx((50 * small / RATE, 50 * large / RATE))


def test_rows_hold_as_many_samples_as_fit_and_only_the_settings_of_the_measurement_are_what_was_measured():
    whole = {"row_tokens": 28, "dtype": "bfloat16", "compile": True}
    padded, packed = (hours.training("vqa_expert", Optimisation(**NUMBERS, **way), HALF, config()) for way in ({}, whole))
    assert packed.limit == pytest.approx((2 * padded.limit[0],) * 2)
    assert packed.as_measured
    for lost in ({"dtype": "float32"}, {"compile": False}, {"float8": True}):
        assert not hours.training("vqa_expert", Optimisation(**NUMBERS, **whole | lost), HALF, config()).as_measured


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_rewards_take_at_least_the_reading_of_the_weights_and_the_gradient(dtype, size):
    """Five steps of which every second has a rollout: three rollouts of ten words, by 44 weights."""
    numbers = rewarded(batch_size=2, group_size=3, max_steps=5, updates_per_rollout=2, max_completion_length=10, dtype=dtype)
    prompt, answer = 4 * 34 * 14 + 12 * 14**2 + IMAGE, 4 * 34 * 10 + 12 * 10**2 + 40 * 10
    expected = 3 * 10 * 44 * size / BANDWIDTH + 5 * 2 * (prompt + 3 * answer) / RATE
    assert hours.rewarding(numbers, Sample(1, 10), config()) == pytest.approx(expected)


def test_the_docs_tell_the_same_shares():
    for name, measured in MEASURED.items():
        row = ROWS[measured.row]
        if measured.time == 1:
            assert float(re.match(r"(\d+) % of", row[2])[1]) == pytest.approx(100 * measured.share), name
        else:
            assert float(row[0].split(" x time")[0]) == measured.time, name
            assert measured.share == MEASURED["vqa_expert"].share
    assert f"{RATE / 1e12:.0f} TFLOP/s in this run" in DOCS
    assert f"One {throughput.CARD} " in DOCS


def test_the_docs_limit_of_stage_1_is_what_the_operations_say():
    limit = RATE / throughput.flops(full_size("llama-7b"), 1, 576 + 200, 200, fused=True)
    assert ROWS[MEASURED["align"].row][2] == f"64 % of {limit:.1f}"


def test_a_table_sums_up_and_costs_only_what_has_a_price():
    found = [Line("one", 1000, (3600, 7200), (36000, 72000), True), Line("two", 5, (1800, 1800), None, False)]
    free, paid = (hours.table(found, "made up", price).splitlines()[:4] for price in (None, 2.5))
    assert [line.split() for line in free] == [
        ["GPU", "hours", "steps", "at", "least", "as", "measured"],
        ["one", "1,000", "1-2", "10-20"],
        ["two", "5", "0.5", "no", "estimate"],
        ["together", "1.5-2.5", "10-20"],
    ]
    assert [line.split()[-1] for line in paid] == ["hour", "25-50", "1.2", "25-50"]
    assert paid[2].endswith("at least 1.2")
    said = hours.table(found, "made up", None)
    assert "cost" not in said
    assert "Of rewards there is a bound alone" in said
    assert "set otherwise" not in said


def test_the_full_size_is_told_without_checkpoints_and_with_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, sizes = hours.lines(FULL)
    assert "no checkpoints are here" in sizes
    by_name = {line.name: line for line in found}
    assert list(by_name) == [*MEASURED, "without_detail", "grpo, cold start", "grpo, rewards"]
    assert by_name["without_detail"].limit[0] == by_name["align"].limit[0] + by_name["vqa_expert"].limit[0]
    # 80 x 4,000 rows of 8,448 tokens: 4 x 6.98e9 weights a token are 2.8e10 operations of the 3.2e10 that attention and images make of it.
    assert 2.8e10 < by_name["align"].limit[0] * RATE / (320_000 * 8448) < 3.4e10
    for name, shape in {"llama": {"model_type": "llama"} | throughput.LANGUAGE["llama-7b"], "clip": throughput.VISION}.items():
        (tmp_path / "data/foundation" / name).mkdir(parents=True)
        kind = LlamaConfig if name == "llama" else CLIPVisionConfig
        kind(**{key: value for key, value in shape.items() if key != "model_type"}).save_pretrained(tmp_path / "data/foundation" / name)
    ConvNextConfig(**throughput.DETAIL).save_pretrained(tmp_path / "data/foundation/convnext")
    smaller, sizes = hours.lines(FULL)
    assert sizes == "those of the checkpoints"
    assert smaller[0].limit[0] < found[0].limit[0]


def test_a_stand_in_has_no_hours():
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert hours.lines(shipped) is None
    assert params.parse("foundation", Foundation, shipped).cases > 0
