"""A foundation from checkpoints: the same numbers in the same types, every tensor accounted for, nothing copied that can be linked."""

import json
import shutil

import derived
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from benchmarks import originals
from unimed.data.records import REGION, SEG
from unimed.model import artifacts, assemble, checkpoint, foundations
from unimed.model.processor import IMAGE

OURS = [IMAGE, REGION, SEG]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The originals; tests only read them."""
    return derived.written(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def folder(places, tmp_path_factory):
    """A foundation made from them."""
    made = tmp_path_factory.mktemp("models") / "foundation"
    foundations.write(made, originals.VLM, places)
    return made


@pytest.fixture(scope="module")
def made(folder):
    """The model on that foundation."""
    return assemble.foundation(folder)


def test_every_number_of_the_originals_is_in_the_model_in_its_own_type(places, made):
    language = derived.read_language(places["language_model"])
    head = language.pop("lm_head.weight")
    own = {f"model.{name}": value for name, value in made.model.model.language_model.state_dict().items()}
    assert own.keys() == language.keys()
    for name, value in language.items():
        assert own[name].dtype == value.dtype == torch.bfloat16
        assert torch.equal(own[name][: len(value)], value)
    assert torch.equal(made.model.lm_head.weight[: originals.TINY.words], head)
    clip, convnext = originals.clip(places["vision"].parent / "again"), originals.convnext(places["vision"].parent / "again")
    for ours, theirs in ((made.model.model.encoder.vision, clip.vision_model), (made.model.model.encoder.detail, convnext.convnext)):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), atol=0, rtol=0)
    sam = originals.sam_med2d(places["vision"].parent / "again.pth")
    torch.testing.assert_close(made.model.grounding.sam.state_dict(), sam.state_dict(), atol=0, rtol=0)


def test_sizes_come_from_the_checkpoints_and_types_stay(made):
    config = made.model.config
    assert (config.text_config.num_key_value_heads, config.vision_config.hidden_size, config.detail_config.hidden_sizes) == (2, 16, [8, 12])
    assert (config.text_config.dtype, config.vision_config.dtype, config.image_size) == (torch.bfloat16, torch.float32, 32)


def test_a_mask_model_in_half_precision_stays_in_it(places, tmp_path):
    found = checkpoint.read(places["mask"])
    torch.save({name: found.tensor(name).bfloat16() for name in found.shapes}, tmp_path / "half.pth")
    foundations.write(tmp_path / "foundation", originals.VLM, places | {"mask": tmp_path / "half.pth"})
    sam = assemble.foundation(tmp_path / "foundation").model.grounding.sam
    assert {value.dtype for value in sam.state_dict().values()} == {torch.bfloat16}


def test_a_llava_s_language_model_keeps_its_own_turn_of_positions(tmp_path):
    """Its config.json says it as Llama's did before transformers 5."""
    settings = {"mm_hidden_size": 16, "hidden_size": 32, "rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    text = foundations.language_config(tmp_path)
    assert (text.model_type, text.hidden_size) == ("llama", 32)
    assert (text.rope_parameters["rope_theta"], text.rope_parameters["factor"]) == (500000.0, 2.0)


def test_the_detail_tower_sees_colours_as_its_own_preprocessor_says(places, made, tmp_path):
    """LAION-CLIP's ConvNeXts were trained on CLIP's mean and deviation; one without a preprocessor is taken to be ImageNet's."""
    clip = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    convnext = tmp_path / "convnext"
    shutil.copytree(places["detail"], convnext)
    (convnext / "preprocessor_config.json").write_text(json.dumps(clip | {"image_processor_type": "ConvNextImageProcessor"}))
    foundations.write(tmp_path / "foundation", originals.VLM, places | {"detail": convnext})
    encoder, image = assemble.foundation(tmp_path / "foundation").model.model.encoder, torch.rand(1, 3, 8, 8)
    assert torch.equal(encoder.detail_normalise(image), encoder.vision_normalise(image))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.equal(made.model.model.encoder.detail_normalise(image), (image - mean) / std)


def test_views_are_as_params_say(places, tmp_path):
    views = {"canvases": [(1, 2), (3, 1)], "pixel_shuffle": 2, "fused_stages": "last", "tile_detail": "whole"}
    foundations.write(tmp_path / "foundation", originals.VLM.model_copy(update=views), places)
    made = assemble.foundation(tmp_path / "foundation")
    assert [tuple(grid) for grid in made.model.config.canvases] == [(1, 2), (3, 1)]
    assert {name: getattr(made.model.config, name) for name in views if name != "canvases"} == {
        "pixel_shuffle": 2, "fused_stages": "last", "tile_detail": "whole"
    }  # fmt: skip
    assert len(made.model.model.encoder.fusions) == 1
    # 4 x 4 patches are 4 tokens a view; 16 x 32 pixels fill two tiles of 16 a side.
    assert made.processor.tokens((16, 32)) == 3 * 4
    text = made.processor.apply_chat_template([[{"role": "user", "content": f"{IMAGE}Is it?"}]], add_generation_prompt=True)
    batch = made.processor(images=[tiny.picture(1, 16, 32)], text=text, return_tensors="pt")
    assert (batch["input_ids"] == made.model.config.image_token_id).sum() == 12
    assert torch.isfinite(made.model(**batch).logits).all()


def test_added_tokens_have_the_mean_row_and_the_others_their_own(places, made):
    tokenizer, language = made.processor.tokenizer, derived.read_language(places["language_model"])
    ids = tokenizer.convert_tokens_to_ids([*OURS, tokenizer.pad_token])
    assert ids == [290, 291, 292, 293]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert made.model.config.text_config.pad_token_id == tokenizer.pad_token_id
    for name, table in (("model.embed_tokens", made.model.get_input_embeddings()), ("lm_head", made.model.lm_head)):
        rows = language[f"{name}.weight"].double()
        assert table.weight.shape == (294, 32)
        assert torch.allclose(table.weight[290:].double(), rows.mean(0).expand(4, -1), atol=2**-9 * rows.abs().max())
    assert torch.equal(made.model.grounding.seg_input, made.model.get_input_embeddings().weight[292].float())
    assert torch.equal(made.model.grounding.seg_output, made.model.lm_head.weight[292].float())


def test_the_language_model_s_own_template_and_words_stay(places, made):
    theirs, ours = originals.tokenizer(), made.processor.tokenizer
    assert (ours.chat_template, ours.eos_token, ours.padding_side) == (theirs.chat_template, "<|eot_id|>", "left")
    assert ours("the liver")["input_ids"] == theirs("the liver")["input_ids"]
    assert list(made.model.config.answer_opening) == theirs("<|start_header_id|>assistant<|end_header_id|>\n\n")["input_ids"]


def test_the_language_model_is_linked_and_is_what_was_released(places, folder):
    files = sorted(file for file in places["language_model"].glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.samefile(folder / "language_model" / file.name) for file in files)
    again = AutoModelForCausalLM.from_pretrained(folder / "language_model")
    torch.testing.assert_close(dict(again.state_dict()), derived.read_language(places["language_model"]), atol=0, rtol=0)


def test_a_link_to_a_checkpoint_is_followed(places, tmp_path):
    elsewhere = {name: tmp_path / "raw" / place.name for name, place in places.items()}
    (tmp_path / "raw").mkdir()
    for name, place in places.items():
        elsewhere[name].symlink_to(place)
    foundations.write(tmp_path / "foundation", originals.VLM, elsewhere)
    files = list((tmp_path / "foundation/language_model").glob("*.safetensors"))
    assert files
    assert not any(file.is_symlink() for file in files)
    artifacts.verify(tmp_path / "foundation")


def test_the_manifest_counts_what_was_left_aside(folder):
    aside = artifacts.verify(folder)["left_aside"]
    text_half = sum(name.startswith(("text_model", "text_projection", "visual_projection", "logit_scale")) for name in clip_names(folder))
    assert aside == {"language_model": 0, "vision": text_half, "detail": 2, "mask": 0}


def clip_names(folder):
    """The tensors of the CLIP that the foundation was made from."""
    return originals.clip(folder.parent / "again").state_dict()


def test_the_model_answers_learns_and_points_with_weights_of_three_types(made):
    """bf16 words, f32 towers: a pass with images, regions and masks, and its gradients."""
    processor = made.processor
    text = processor.apply_chat_template(
        [[{"role": "user", "content": f"{IMAGE}Is {REGION} the liver? {SEG}"}]], add_generation_prompt=True
    )
    batch = processor(images=[tiny.marked(tiny.picture(1), tiny.box(2, 3, 9, 7))], text=text, padding=True, return_tensors="pt")
    out = made.model(**batch, labels=batch["input_ids"], segment=True)
    assert out.mask_logits.shape == (1, 32, 32)
    (out.loss + out.mask_logits.square().mean()).backward()
    assert made.model.model.projector.fc1.weight.grad.abs().sum() > 0
    assert made.model.grounding.text_hidden_fcs[0].weight.grad.abs().sum() > 0
    made.model.zero_grad()


def test_a_tied_output_layer_becomes_one_of_its_own(tmp_path):
    places = derived.written(tmp_path / "raw", tie_word_embeddings=True)
    foundations.write(tmp_path / "foundation", originals.VLM, places)
    model = assemble.foundation(tmp_path / "foundation").model
    table, head = model.get_input_embeddings().weight, model.lm_head.weight
    assert torch.equal(table, head)
    assert table.data_ptr() != head.data_ptr()
    assert model.config.get_text_config().tie_word_embeddings is False
    model.grounding.seg_output.data += 1
    model.write_seg_rows()
    assert not torch.equal(table[292], head[292])


def test_a_vocabulary_with_room_to_spare_is_not_grown(tmp_path):
    """Qwen's tables have more rows than its tokenizer has words; ours take the next ones."""
    places = derived.written(tmp_path / "raw", vocab_size=320)
    foundations.write(tmp_path / "foundation", originals.VLM, places)
    made = assemble.foundation(tmp_path / "foundation")
    assert made.processor.tokenizer.convert_tokens_to_ids(SEG) == 292
    table = made.model.get_input_embeddings().weight
    released = derived.read_language(places["language_model"])["model.embed_tokens.weight"]
    assert table.shape == released.shape == (320, 32)
    assert torch.allclose(table[292].double(), released[: originals.TINY.words].double().mean(0), atol=1e-3)
    assert torch.equal(table[294:], released[294:])


def test_a_word_that_has_no_row_gets_the_mean_one_like_the_added_tokens(tmp_path):
    """As a padding token that a tokenizer was given and the tables were not."""
    places = derived.written(tmp_path / "raw", vocab_size=288)
    foundations.write(tmp_path / "foundation", originals.VLM, places)
    made = assemble.foundation(tmp_path / "foundation")
    released = derived.read_language(places["language_model"])
    for name, table in (("model.embed_tokens", made.model.get_input_embeddings()), ("lm_head", made.model.lm_head)):
        rows = released[f"{name}.weight"].double()
        assert (len(rows), len(table.weight)) == (288, 294)
        assert torch.allclose(table.weight[288:].double(), rows.mean(0).expand(6, -1), atol=1e-3)


def test_a_language_model_with_biases_and_another_name_does_as_well(places, tmp_path):
    """Qwen2: biases on queries, keys and values, one table for both sides."""
    folder = tmp_path / "qwen"
    model = originals.save(Qwen2ForCausalLM(Qwen2Config(**originals.TINY.language, tie_word_embeddings=True)), folder)
    originals.tokenizer().save_pretrained(folder)
    foundations.write(tmp_path / "foundation", originals.VLM, places | {"language_model": folder})
    made = assemble.foundation(tmp_path / "foundation").model
    ids = torch.tensor([[5, 9, 280, 3]])
    with torch.no_grad():
        logits = made(input_ids=ids).logits[0, -1, : originals.TINY.words]
        assert torch.allclose(logits, model(ids).logits[0, -1], atol=1e-5)


def test_files_that_hold_more_than_the_language_model_are_written_anew(places, tmp_path):
    """LLaVA's, in safetensors: its tower and its projector stay where they are."""
    folder, language = tmp_path / "llava", derived.read_language(places["language_model"])
    derived.llava(folder, language, originals.clip(tmp_path / "again"), pickled=False)
    originals.tokenizer().save_pretrained(folder)
    foundations.write(tmp_path / "foundation", originals.VLM, places | {"language_model": folder})
    assert checkpoint.read(tmp_path / "foundation/language_model").shapes.keys() == language.keys()
    table = assemble.foundation(tmp_path / "foundation").model.get_input_embeddings().weight
    assert torch.equal(table[: originals.TINY.words], language["model.embed_tokens.weight"])


def test_two_foundations_from_the_same_checkpoints_are_the_same_bytes(places, folder, tmp_path):
    foundations.write(tmp_path / "foundation", originals.VLM, places)
    assert json.loads((tmp_path / "foundation/manifest.json").read_text()) == artifacts.verify(folder)
