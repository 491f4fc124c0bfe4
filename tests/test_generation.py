"""Answers word by word: the cache, the router's memory and company in a batch change nothing."""

import pytest
import tiny
import torch
from transformers import GenerationConfig

CLOSE = {"atol": 1e-5, "rtol": 0}
ROUTED = [(level, choice) for level in ("sequence", "token") for choice in ("soft", "top1")]


@pytest.fixture(scope="module", params=[None, *ROUTED], ids=str)
def model(request):
    if request.param is None:
        return tiny.stirred()
    level, choice = request.param
    return tiny.stirred(**tiny.EXPERTS, router_level=level, router_choice=choice)


def answered(model, inputs, use_cache=True, **more):
    """Logits of each new word and the words, the likeliest each time."""
    found = model.generate(
        **inputs, **({"do_sample": False} | more), max_new_tokens=6, min_new_tokens=6, use_cache=use_cache,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return torch.stack(found.logits, 1), found.sequences[:, inputs["input_ids"].shape[1] :]


def conversations():
    """Texts with two images and a region, with a turn already answered, and without an image; and their pictures."""
    said = ["<image>Is there a nodule?", "no", "Which structure is marked? <region>"]
    asked = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), said, strict=True)]
    second = tiny.processor().apply_chat_template(asked, add_generation_prompt=True)
    texts = [*tiny.ask("<image> and <image> differ? <region>"), second, *tiny.ask("Is it there?")]
    marked = [tiny.marked(tiny.picture(number), tiny.box(number, 3, 9, 9)) for number in (0, 1)]
    return texts, [[tiny.picture(5), marked[0]], [marked[1]], []]


def test_answering_with_a_cache_equals_answering_without(model):
    texts, pictures = conversations()
    inputs = tiny.inputs(pictures, *texts)
    logits, words = answered(model, inputs)
    expected_logits, expected_words = answered(model, inputs, use_cache=False)
    assert torch.equal(words, expected_words)
    assert len(words.unique()) > 4
    torch.testing.assert_close(logits, expected_logits, **CLOSE)


def test_a_batch_is_answered_as_its_texts_are_alone(model):
    texts, pictures = conversations()
    logits, words = answered(model, tiny.inputs(pictures, *texts))
    for row, (text, own) in enumerate(zip(texts, pictures, strict=True)):
        alone, alone_words = answered(model, tiny.inputs(own, text))
        assert torch.equal(words[row], alone_words[0])
        torch.testing.assert_close(logits[row], alone[0], **CLOSE)


def test_several_answers_to_one_text_see_the_same_images(model):
    texts, pictures = conversations()
    inputs = tiny.inputs(pictures, *texts)
    _, expected = answered(model, inputs)
    _, words = answered(model, inputs, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(words, expected.repeat_interleave(2, 0))


@pytest.mark.parametrize("name", ["image_token_id", "region_token_id"])
def test_an_answer_never_holds_a_placeholder(name):
    model = tiny.stirred()
    forbidden = getattr(model.config, name)
    inputs = tiny.inputs([tiny.picture(0)], *tiny.ask("<image>Is there a nodule?"))
    with torch.no_grad():
        wanted = model.model(**inputs).last_hidden_state[0, -1]
        model.lm_head.weight[forbidden] = 100 * wanted
    logits, words = answered(model, inputs)
    assert logits[0, 0].argmax() == forbidden
    assert not (words == forbidden).any()
    _, words = answered(model, inputs, generation_config=GenerationConfig(temperature=0.5))
    assert not (words == forbidden).any()


def test_an_answer_ends_with_the_end_token():
    model = tiny.stirred()
    inputs = tiny.inputs([tiny.picture(0)], *tiny.ask("<image>Is there a nodule?"))
    end = tiny.processor().tokenizer.eos_token_id
    with torch.no_grad():
        model.lm_head.weight[end] = 100 * model.model(**inputs).last_hidden_state[0, -1]
    words = model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=True)[0, inputs["input_ids"].shape[1] :]
    assert words.tolist() == [end]
