"""Checkpoints that do not fit are refused whole: every difference is counted, the first are named, nothing is resized or dropped."""

import derived
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import originals
from unimed.errors import InputError
from unimed.model import foundations


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The originals; tests only read them."""
    return derived.written(tmp_path_factory.mktemp("raw"))


def broken(places, tmp_path, name, change):
    """The originals with one tower's tensors changed."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for file in places[name].iterdir():
        if not file.name.startswith("model"):
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = {key: value for file in places[name].glob("*.safetensors") for key, value in load_file(file).items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return places | {name: folder}


def without(*names):
    def change(tensors):
        for name in names:
            del tensors[name]

    return change


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("language_model", without("model.norm.weight"), r"found 1 missing \(model.norm.weight\)$"),
        (
            "language_model",
            without(*(f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkvo")),
            r"found 4 missing \(model.layers.1.self_attn.k_proj.weight, .*o_proj.weight, .*q_proj.weight, ...\)$",
        ),
        ("language_model", lambda t: t.update({"model.extra": torch.zeros(2)}), r"found 1 unexpected \(model.extra\)$"),
        (
            "language_model",
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"][1:].clone()}),
            r"found 1 of another shape \(lm_head.weight \(289, 32\) for \(290, 32\)\)$",
        ),
        (
            "vision",
            lambda t: t.update({"vision_model.embeddings.position_embedding.weight": torch.zeros(26, 16)}),
            r"found 1 of another shape \(embeddings.position_embedding.weight \(26, 16\) for \(17, 16\)\)$",
        ),
        ("vision", lambda t: t.update({"pre_layrnorm.weight": torch.zeros(16)}), "expected one tensor for pre_layrnorm.weight, found"),
        ("detail", without("convnext.layernorm.bias"), r"expected exactly the \d+ tensors .* found 1 missing \(layernorm.bias\)$"),
        ("language_model", lambda t: t.update({"model.norm.weight": torch.zeros(32)}), "expected tensors of one type, .*found BF16, F32$"),
        ("vision", lambda t: t.update({key: value.half() for key, value in t.items()}), "torch.float16, found torch.float32; convert one"),
    ],
)
def test_what_does_not_fit_is_counted_and_named(places, tmp_path, name, change, sentence):
    with pytest.raises(InputError, match=sentence):
        foundations.write(tmp_path / "foundation", originals.VLM, broken(places, tmp_path, name, change))


def test_a_mask_model_of_another_size_is_refused_and_never_resized(places, tmp_path):
    originals.sam_med2d(tmp_path / "large.pth", image_size=64)
    with pytest.raises(
        InputError, match=r"large.pth: .* of another shape \(image_encoder.*pos_embed \(1, 16, 16, 16\) for \(1, 8, 8, 16\)"
    ):
        foundations.write(tmp_path / "foundation", originals.VLM, places | {"mask": tmp_path / "large.pth"})


def test_a_language_model_without_a_template_is_refused(places, tmp_path):
    changed = broken(places, tmp_path, "language_model", lambda t: None)
    originals.tokenizer(template=None).save_pretrained(changed["language_model"])
    (changed["language_model"] / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(InputError, match="expected a .*chat template, found none"):
        foundations.write(tmp_path / "foundation", originals.VLM, changed)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ('{"model_type": "unheard-of"}', "config.json: expected a model_type that transformers knows, found unheard-of"),
        ('{"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2}', "expected a language model built like Llama's, found a gpt2"),
        ("{", "config.json: expected the settings of a checkpoint, found JSONDecodeError"),
    ],
)
def test_a_language_model_of_another_build_is_refused(places, tmp_path, config, sentence):
    changed = broken(places, tmp_path, "language_model", lambda t: None)
    (changed["language_model"] / "config.json").write_text(config)
    with pytest.raises(InputError, match=sentence):
        foundations.write(tmp_path / "foundation", originals.VLM, changed)


def test_a_language_model_without_a_tokenizer_is_refused(places, tmp_path):
    changed = broken(places, tmp_path, "language_model", lambda t: None)
    for file in changed["language_model"].glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="expected a tokenizer.json with its settings, found"):
        foundations.write(tmp_path / "foundation", originals.VLM, changed)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            '{"image_mean": [0.5, 0.5, 0.5]}',
            r"preprocessor_config.json: expected image_mean and image_std for three colours, found .* and None",
        ),
        ('{"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}', "for three colours, found"),
        ('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.0, 0.5]}', "for three colours, found"),
        ('{"image_mean": [0.5, NaN, 0.5], "image_std": [0.5, 0.5, 0.5]}', "for three colours, found"),
        ('{"image_mean": "grey", "image_std": [0.5, 0.5, 0.5]}', "for three colours, found grey"),
        ("[]", "preprocessor_config.json: expected the settings of a checkpoint, found a list"),
        ("{", "preprocessor_config.json: expected the settings of a checkpoint, found JSONDecodeError"),
    ],
)
def test_a_preprocessor_that_does_not_say_the_colours_is_refused_before_any_work(places, tmp_path, settings, sentence):
    changed = broken(places, tmp_path, "detail", lambda t: None)
    (changed["detail"] / "preprocessor_config.json").write_text(settings)
    with pytest.raises(InputError, match=sentence):
        foundations.write(tmp_path / "foundation", originals.VLM, changed)
    assert not (tmp_path / "foundation").exists()


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"pixel_shuffle": 3}, "params.yaml: vlm: pixel_shuffle must divide the 4 patches of a side, is 3"),
        ({"canvases": [(1, 1)]}, "params.yaml: vlm: canvases must hold rows and columns of two tiles or more"),
        ({"mask": originals.TINY.mask | {"hidden_size": "large"}}, "params.yaml: vlm: .*hidden_size"),
    ],
)
def test_numbers_that_do_not_fit_the_checkpoints_are_refused_in_a_sentence(places, tmp_path, numbers, sentence):
    with pytest.raises(InputError, match=sentence):
        foundations.write(tmp_path / "foundation", originals.VLM.model_copy(update=numbers), places)
