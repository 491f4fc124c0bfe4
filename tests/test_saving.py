"""Models on disk: what comes back is what was stored, and anything else is an error with a name."""

import json
import subprocess
import sys

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from unimed.errors import InputError
from unimed.model.processor import UniMedProcessor
from unimed.model.sam_decoder import FourierPositions
from unimed.model.sam_med2d import GridAttention, ImageEncoder
from unimed.model.unimed import UniMedForConditionalGeneration

KINDS = {"plain": {}, "sequence": tiny.EXPERTS, "token": tiny.EXPERTS | {"router_level": "token", "router_choice": "top1"}}
READER = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from unimed.model.unimed import UniMedForConditionalGeneration

for folder in map(Path, sys.argv[1:]):
    model = UniMedForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(**load_file(folder / "inputs.safetensors"), segment=True)
    save_file({"logits": found.logits, "masks": found.mask_logits}, folder / "found.safetensors")
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Each kind of model in a folder, with inputs and what the model makes of them."""
    root = tmp_path_factory.mktemp("models")
    inputs = tiny.inputs([tiny.marked(tiny.picture(0), tiny.box(3, 4, 5, 6))], *tiny.ask("<image>Is there a nodule? <region> <SEG>"))
    made = {}
    for kind, changes in KINDS.items():
        model = tiny.stirred(**changes)
        model.save_pretrained(root / kind)
        save_file(inputs, root / kind / "inputs.safetensors")
        with torch.no_grad():
            made[kind] = model(**inputs, segment=True)
    return root, made


def test_a_stored_model_gives_identical_results_in_a_fresh_process(stored):
    root, made = stored
    folders = [str(root / kind) for kind in KINDS]
    subprocess.run([sys.executable, "-c", READER, *folders], check=True)
    fresh = {kind: load_file(root / kind / "found.safetensors") for kind in KINDS}
    subprocess.run([sys.executable, "-c", READER, *folders], check=True)
    for kind in KINDS:
        again = load_file(root / kind / "found.safetensors")
        assert all(torch.equal(fresh[kind][name], again[name]) for name in ("logits", "masks")), kind
        # Tensors read from a file begin at other addresses, where some processors' matrix products round the last bit otherwise.
        torch.testing.assert_close(fresh[kind]["logits"], made[kind].logits, atol=1e-6, rtol=0)
        torch.testing.assert_close(fresh[kind]["masks"], made[kind].mask_logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_is_stored_again_as_it_was(stored, tmp_path, kind):
    root, _ = stored
    model = UniMedForConditionalGeneration.from_pretrained(root / kind)
    torch.testing.assert_close(model.state_dict(), tiny.stirred(**KINDS[kind]).state_dict(), atol=0, rtol=0)
    model.save_pretrained(tmp_path)
    for name in ("model.safetensors", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (root / kind / name).read_bytes(), name
    first, again = (json.loads((folder / "config.json").read_text(), object_hook=_settled) for folder in (root / kind, tmp_path))
    assert first == again


def _settled(part):
    """A part of a config without the number type, which transformers notes in every part on loading."""
    return {name: value for name, value in part.items() if name != "dtype"}


def _lack(tensors):
    del tensors["grounding.seg_input"]


def _add(tensors):
    tensors["model.projector.fc3.weight"] = torch.zeros(2)


def _bend(tensors):
    tensors["model.encoder.fusions.0.gate"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("harm", "named"), [(_lack, "grounding.seg_input"), (_add, "model.projector.fc3.weight"), (_bend, "model.encoder.fusions.0.gate")]
)
def test_a_model_with_other_tensors_than_its_config_says_is_refused(stored, tmp_path, harm, named):
    root, _ = stored
    tensors = load_file(root / "plain" / "model.safetensors")
    harm(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((root / "plain" / "config.json").read_text())
    with pytest.raises(InputError, match=named) as caught:
        UniMedForConditionalGeneration.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_stored_config_is_readable_json_with_every_part(stored):
    root, _ = stored
    written = json.loads((root / "sequence" / "config.json").read_text())
    assert written["model_type"] == "unimed"
    assert written["experts"] == ["vqa", "grounding"]
    assert {written[part]["model_type"] for part in ("vision_config", "detail_config", "text_config", "mask_config")} == {
        "clip_vision_model", "convnext", "llama", "sam_med2d",
    }  # fmt: skip


def test_a_model_takes_shape_without_memory():
    with torch.device("meta"):
        model = UniMedForConditionalGeneration(tiny.config(tiny.processor().tokenizer, **tiny.EXPERTS))
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in tiny.fresh(**tiny.EXPERTS).state_dict().items()
    }


def test_the_mask_models_own_tensors_are_drawn_where_nothing_was_loaded():
    model = tiny.fresh()
    own = [module for module in model.modules() if isinstance(module, ImageEncoder | GridAttention | FourierPositions)]
    for module in own:
        module._is_hf_initialized = False
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            tensor.detach().fill_(torch.nan)
    model.initialize_weights()
    assert len(own) == 4
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_fresh_experts_and_routers_stand_at_zero_and_fusions_are_closed():
    state = tiny.fresh(**tiny.EXPERTS).state_dict()
    still = [name for name in state if name.endswith((".gate", ".expert_in", ".expert_out", "router.linear.weight", "router.linear.bias"))]
    assert len(still) == 2 + 2 * 2 * len(tiny.TARGETS) + 2 * 2
    assert not any(state[name].any() for name in still)


def test_a_stored_processor_writes_the_same_inputs(tmp_path):
    processor = tiny.processor()
    processor.save_pretrained(tmp_path)
    found = UniMedProcessor.from_pretrained(tmp_path)
    [text] = tiny.ask("<image>Is there a nodule? <region>")
    picture = tiny.marked(tiny.picture(0, 20, 50), tiny.box(3, 4, 5, 6, (20, 50)))
    expected = processor(images=[picture], text=text, return_tensors="pt")
    torch.testing.assert_close(dict(found(images=[picture], text=text, return_tensors="pt")), dict(expected), atol=0, rtol=0)
    assert found.tokenizer.padding_side == "left"
    assert found.apply_chat_template([{"role": "user", "content": "?"}], add_generation_prompt=True) == "<|user|>?<|end|><|assistant|>"


def test_a_model_is_stored_and_read_without_a_word_on_the_terminal(tmp_path, capfd):
    tiny.fresh().save_pretrained(tmp_path)
    UniMedForConditionalGeneration.from_pretrained(tmp_path)
    assert capfd.readouterr() == ("", "")
