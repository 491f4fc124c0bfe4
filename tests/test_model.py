"""The assembled model: what padding, batching, images and cutting short may not change."""

import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy
from trl.trainer.utils import add_fused_lm_head

from unimed.model.sam_med2d import SamMed2DConfig
from unimed.model.unimed import UniMedForConditionalGeneration

CLOSE = {"atol": 1e-5, "rtol": 0}
"""Single precision: another batch size or length adds numbers up in another order."""

QUESTION = "<image>Is there a nodule?"
ROUTED = [(level, choice) for level in ("sequence", "token") for choice in ("soft", "top1")]


def routed(level: str, choice: str) -> UniMedForConditionalGeneration:
    return tiny.stirred(**tiny.EXPERTS, router_level=level, router_choice=choice)


@pytest.fixture(scope="module")
def model():
    return tiny.stirred()


@pytest.fixture(scope="module", params=[None, *ROUTED], ids=str)
def any_model(request):
    return tiny.stirred() if request.param is None else routed(*request.param)


@torch.no_grad()
def rows(model, inputs, **more):
    """Logits of every text's real tokens."""
    logits = model(**inputs, **more).logits
    return [row[mask.bool()] for row, mask in zip(logits, inputs["attention_mask"], strict=True)]


def mixed():
    """Pictures and texts of a batch: two images with a region each, none, and one with two regions."""
    texts = tiny.ask("<image> and <image> differ? <region><region>", "Is it there?", "<image>Which structure? <region> or <region>")
    pictures = [
        tiny.marked(tiny.picture(0), tiny.box(0, 0, 8, 8)),
        tiny.marked(tiny.picture(1), tiny.box(9, 3, 20, 9)),
        tiny.marked(tiny.picture(2), tiny.box(1, 1, 1, 1), tiny.box(16, 16, 16, 16)),
    ]
    return texts, [pictures[:2], [], pictures[2:]]


def test_a_batch_gives_what_its_texts_give_alone(any_model):
    texts, pictures = mixed()
    together = rows(any_model, tiny.inputs(pictures, *texts))
    for text, own, found in zip(texts, pictures, together, strict=True):
        [alone] = rows(any_model, tiny.inputs(own, text))
        torch.testing.assert_close(found, alone, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(any_model, side):
    inputs = tiny.inputs([tiny.picture(0)], *tiny.ask(QUESTION))
    padding = (5, 0) if side == "left" else (0, 5)
    padded = inputs | {name: torch.nn.functional.pad(inputs[name], padding) for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(rows(any_model, padded), rows(any_model, inputs), **CLOSE)


def test_every_image_of_a_text_is_seen(model):
    text = tiny.ask("<image> and <image> differ?")
    [first], [other_first], [other_second] = (
        rows(model, tiny.inputs([tiny.picture(a), tiny.picture(b)], *text)) for a, b in ((0, 1), (2, 1), (0, 2))
    )
    assert not torch.allclose(first[-1], other_first[-1], atol=1e-3)
    assert not torch.allclose(first[-1], other_second[-1], atol=1e-3)


def test_a_text_without_an_image_is_read_without_one(model):
    [logits] = rows(model, tiny.inputs([], *tiny.ask("Is it there?")))
    assert logits.isfinite().all()


@pytest.mark.parametrize("given", [1, 3])
def test_another_number_of_images_than_the_text_has_is_an_error(model, given):
    inputs = tiny.inputs([tiny.picture(0), tiny.picture(1)], *tiny.ask("<image><image>?"))
    pixels = torch.rand(given, 3, tiny.SIZE, tiny.SIZE)
    with pytest.raises(ValueError, match=f"expected {16 * given} image tokens for the pixels given, found 32"):
        model(inputs["input_ids"], inputs["attention_mask"], pixels)


def test_another_number_of_regions_than_the_text_has_is_an_error(model):
    inputs = tiny.inputs([tiny.marked(tiny.picture(0), tiny.box(0, 0, 4, 4))], *tiny.ask("<image><region>?"))
    inputs["pixel_values"] = torch.cat([inputs["pixel_values"], torch.ones(1, 1, tiny.SIZE, tiny.SIZE)], 1)
    with pytest.raises(ValueError, match="expected 2 region tokens for the pixels given, found 1"):
        model(**inputs)


def test_an_image_token_without_pixels_is_an_error(model):
    inputs = tiny.inputs([tiny.picture(0)], *tiny.ask(QUESTION))
    with pytest.raises(ValueError, match="expected pixel_values for the image tokens of the text, found none"):
        model(inputs["input_ids"], inputs["attention_mask"])


def test_the_loss_is_the_mean_cross_entropy_of_the_labelled_words(model):
    inputs = tiny.inputs([tiny.picture(0)], *tiny.ask(QUESTION))
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, -4:] = torch.tensor([7, tiny.config(tiny.processor().tokenizer).seg_token_id, 9, 3])
    [logits] = rows(model, inputs)
    expected = cross_entropy(logits[-5:-1], labels[0, -4:])
    torch.testing.assert_close(model(**inputs, labels=labels).loss, expected)


def test_only_the_last_logits_are_made_when_asked(model):
    inputs = tiny.inputs([tiny.picture(0)], *tiny.ask(QUESTION))
    [whole], [last] = rows(model, inputs), model(**inputs, logits_to_keep=2).logits
    torch.testing.assert_close(last, whole[-2:], **CLOSE)


def pointing():
    """Texts with two, no and one `<SEG>`, and their pictures."""
    texts = ["<image>Where? <SEG> and again <SEG>", "<image>Is it there? no", "<image>the liver <SEG>"]
    return texts, [tiny.picture(number) for number in range(3)]


def test_masks_come_in_the_order_of_their_seg_tokens(model):
    texts, pictures = pointing()
    together = model(**tiny.inputs(pictures, *texts), segment=True).mask_logits
    alone = [model(**tiny.inputs([own], text), segment=True).mask_logits for text, own in zip(texts, pictures, strict=True)]
    assert [len(found) for found in alone] == [2, 0, 1]
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    torch.testing.assert_close(together, torch.cat(alone), **CLOSE)


def test_a_mask_is_drawn_on_the_last_image_before_its_seg_token(model):
    text = "<image>Where? <SEG> <image>And here? <SEG>"
    [first, second] = model(**tiny.inputs([tiny.picture(0), tiny.picture(1)], text), segment=True).mask_logits
    other_first, other_second = model(**tiny.inputs([tiny.picture(0), tiny.picture(2)], text), segment=True).mask_logits
    torch.testing.assert_close(first, other_first, **CLOSE)
    assert not torch.allclose(second, other_second, atol=1e-3)


def test_no_masks_are_made_unless_asked(model):
    texts, pictures = pointing()
    assert model(**tiny.inputs(pictures, *texts)).mask_logits is None


def test_written_seg_rows_let_code_read_the_tables_alone():
    model = tiny.stirred()
    inputs = tiny.inputs([tiny.picture(0)], "<image>Where? <SEG> and <SEG> there")
    [expected] = rows(model, inputs)
    model.write_seg_rows()
    with torch.no_grad():
        hidden = model.model(**inputs).last_hidden_state
    torch.testing.assert_close(model.lm_head(hidden)[0], expected)
    torch.testing.assert_close(rows(model, inputs)[0], expected)


def test_the_fused_head_of_trl_scores_words_as_the_model_does():
    model = tiny.stirred(**tiny.EXPERTS)
    inputs = tiny.inputs([tiny.picture(0)], "<image>Where? <SEG> and <SEG> there")
    [logits] = rows(model, inputs)
    expected = logits[:-1].log_softmax(-1).gather(1, inputs["input_ids"][0, 1:, None]).squeeze(1)
    model.write_seg_rows()
    add_fused_lm_head(model)
    scored = model(**inputs, labels=inputs["input_ids"], fused_lm_head=True)
    torch.testing.assert_close(scored.log_probs[0], expected, **CLOSE)


@pytest.mark.parametrize("changes", [{}, tiny.EXPERTS], ids=["plain", "experts"])
def test_a_model_in_half_precision_reads_the_same_inputs(changes):
    model = tiny.stirred(**changes)
    inputs = tiny.inputs([tiny.marked(tiny.picture(0), tiny.box(0, 0, 9, 9))], "<image>Where? <region> <SEG>")
    with torch.no_grad():
        expected = model(**inputs, segment=True)
        found = model.bfloat16()(**inputs, segment=True)
    for name in ("logits", "mask_logits"):
        assert (found[name] - expected[name]).norm() < 0.05 * expected[name].norm(), name


@pytest.mark.parametrize(("level", "choice"), ROUTED)
def test_recomputing_activations_changes_no_gradient(level, choice):
    texts, pictures = pointing()
    inputs = tiny.inputs(pictures, *texts)
    gradients = []
    for recompute in (False, True):
        model = routed(level, choice).train()
        if recompute:
            model.activation_checkpointing_enable()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    torch.testing.assert_close(*gradients, **CLOSE)


@torch.no_grad()
def test_a_mask_model_of_half_the_resolution_sees_the_means_of_four_pixels():
    small = SamMed2DConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, output_channels=16, decoder_heads=2,
        decoder_mlp_dim=32, iou_hidden_dim=16,
    )  # fmt: skip
    made, seen = tiny.stirred(mask_config=small), []
    made.grounding.normalise.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    inputs = tiny.inputs([tiny.picture(0)], "<image>It is <SEG>.")
    assert made(**inputs, segment=True).mask_logits.shape == (1, 16, 16)
    torch.testing.assert_close(seen, [inputs["pixel_values"].unflatten(3, (16, 2)).unflatten(2, (16, 2)).mean((3, 5))])
