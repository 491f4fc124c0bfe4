"""Language models of other kinds: their own tokenizer and template say what is asked, what is learned and where an answer ends."""

import dialects
import pytest
import tiled
import tiny
import torch
from transformers import PreTrainedTokenizerFast

from unimed.config import Vlm
from unimed.data.records import REGION, SEG
from unimed.errors import InputError
from unimed.eval import predict
from unimed.model import tokenizer
from unimed.model.assemble import Assembled
from unimed.model.packing import prompts
from unimed.model.processor import IMAGE, UniMedProcessor
from unimed.model.unimed import UniMedForConditionalGeneration
from unimed.train import batch, rehearsal
from unimed.train.batch import IGNORED

SIZE = (tiny.SIZE, tiny.SIZE)
KINDS = {"llama": (dialects.llama, "<|eot_id|>"), "qwen2": (dialects.qwen, "<|im_end|>")}
SAID = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a nodule?"}]},
    {"role": "assistant", "content": "no"},
    {"role": "user", "content": "Which structure is marked? <region>"},
    {"role": "assistant", "content": "the liver <SEG>."},
]
LLAMA_TEXT = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n<image>\nIs there a nodule?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nno<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhich structure is marked? <region><|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nthe liver <SEG>.<|eot_id|>"
)
QWEN_TEXT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nIs there a nodule?<|im_end|>\n"
    "<|im_start|>assistant\nno<|im_end|>\n<|im_start|>user\nWhich structure is marked? <region><|im_end|>\n"
    "<|im_start|>assistant\nthe liver <SEG>.<|im_end|>\n"
)

NUMBERS = {
    "vision": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16,
               "patch_size": 4},
    "detail": {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    "text": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    "mask": {"image_size": 32, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": 5,
             "output_channels": 16, "decoder_heads": 2, "decoder_mlp_dim": 32, "iou_hidden_dim": 16},
    "fusion_blocks": [1, 2], "fusion_hidden_size": 24, "vision_feature_layer": -2,
}  # fmt: skip
PREFACED = "{% if add_generation_prompt %}{{ 'Answer: ' }}{% endif %}{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
"""A template that announces an answer before the question."""


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def words(kind):
    return tokenizer.adopt(KINDS[kind][0]())


def built(kind, words, **changes) -> Assembled:
    """A tiny model of a kind from numbers as params.yaml holds them."""
    vlm = Vlm.model_validate(NUMBERS | {"text": NUMBERS["text"] | {"model_type": kind}} | changes)
    torch.manual_seed(0)
    config = rehearsal.configuration(vlm, words)
    return Assembled(UniMedForConditionalGeneration(config).eval(), UniMedProcessor.of(config, words))


def test_only_the_placeholders_and_a_missing_pad_are_added(kind, words):
    before = KINDS[kind][0]()
    known = before.get_vocab()
    assert {token: words.get_vocab()[token] for token in known} == known
    assert set(words.get_vocab()) - set(known) == {IMAGE, REGION, SEG} | ({tokenizer.PAD} if kind == "llama" else set())
    assert words.chat_template == before.chat_template
    assert IMAGE not in before.get_vocab(), "the tokenizer given stays as it was"
    assert len({words.pad_token_id, words.eos_token_id, *(tokenizer.special_id(words, token) for token in (IMAGE, REGION, SEG))}) == 5


def test_what_was_special_before_is_special_still():
    opening = "<|im_start|>"
    adopted = tokenizer.adopt(dialects.qwen(additional_special_tokens=[opening]))
    assert {opening, IMAGE, REGION, SEG} <= set(adopted.all_special_tokens)


def test_adopting_again_changes_nothing(words):
    again = tokenizer.adopt(words)
    assert again.get_vocab() == words.get_vocab()
    assert (again.special_tokens_map, again.padding_side) == (words.special_tokens_map, "left")


def test_an_adopted_tokenizer_comes_back_as_it_was_stored(tmp_path, words):
    words.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again.get_vocab() == words.get_vocab()
    names = ("padding_side", "clean_up_tokenization_spaces", "eos_token", "pad_token", "bos_token", "chat_template")
    assert [getattr(again, name) for name in names] == [getattr(words, name) for name in names]
    assert again.padding_side == "left" and not again.clean_up_tokenization_spaces
    assert tokenizer.known(again) == tokenizer.known(words)


def test_our_own_tokenizer_needs_no_adoption():
    own = tiny.processor().tokenizer
    again = tokenizer.adopt(own)
    assert again.get_vocab() == own.get_vocab()
    assert (again.eos_token, again.pad_token, again.padding_side) == (own.eos_token, own.pad_token, own.padding_side)


def test_the_end_of_text_is_what_the_template_ends_an_answer_with(kind, words):
    assert words.eos_token == KINDS[kind][1]
    base = KINDS[kind][0](eos_token="<|end_of_text|>" if kind == "llama" else "<|endoftext|>")
    assert tokenizer.adopt(base).eos_token == KINDS[kind][1]
    twice = "{% for m in messages %}{{ m['content'] + '<|im_end|><|endoftext|>' }}{% endfor %}"
    assert tokenizer.answer_end(dialects.qwen(chat_template=twice)) == "<|im_end|>", "where generation can stop first"


def test_a_pad_that_would_also_end_answers_is_replaced(kind):
    adopted = tokenizer.adopt(KINDS[kind][0](pad_token=KINDS[kind][1]))
    assert (adopted.pad_token, adopted.eos_token) == (tokenizer.PAD, KINDS[kind][1])


def test_placeholders_are_single_tokens_wherever_they_stand(words):
    ids = words("the<image><image>liver<SEG>.<region> ?", add_special_tokens=False)["input_ids"]
    image, region, seg = (words.convert_tokens_to_ids(token) for token in (IMAGE, REGION, SEG))
    assert [token for token in ids if token in (image, region, seg)] == [image, image, seg, region]


def test_what_is_written_is_decoded_as_it_was_written(words):
    text = "It is there . Is it ? 37 °C , do n't"
    assert words.decode(words(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: dialects.llama(chat_template=None), "expected a chat template, found none; take an instruction-tuned model's"),
        (lambda: dialects.llama(trim_offsets=True), "expected tokens that cover all of their text, found gaps"),
        (
            lambda: dialects.qwen(chat_template="{% for m in messages %}{{ m['content'] }}\n{% endfor %}"),
            "a chat template that ends answers with",
        ),
        (lambda: dialects.qwen(chat_template=PREFACED), "expected a chat template that opens an answer after the question, found"),
    ],
)
def test_a_tokenizer_that_cannot_hold_a_conversation_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        tokenizer.known(tokenizer.adopt(given()))


def test_a_conversation_is_written_in_the_model_s_own_words(kind, words):
    text = built(kind, words).processor.apply_chat_template(SAID)
    assert text == (LLAMA_TEXT if kind == "llama" else QWEN_TEXT)


def test_labels_are_the_assistant_s_spans_with_their_ends(kind, words):
    processor = built(kind, words).processor
    made = batch.labelled(processor, [SAID, SAID[:2]], [[SIZE], [SIZE]])
    after = "\n" if kind == "qwen2" else ""
    first, second = (words.decode(row[row != IGNORED]) for row in made["labels"])
    end = KINDS[kind][1] + after
    assert first == f"no{end}the liver <SEG>.{end}"
    assert second == f"no{end}"
    assert torch.equal(made["labels"][made["labels"] != IGNORED], made["input_ids"][made["labels"] != IGNORED])


def test_a_text_begins_once(kind, words):
    made = built(kind, words)
    read = made.processor.apply_chat_template([SAID[:1]], add_generation_prompt=True)
    ids = made.processor(images=[tiny.picture(0)], text=read)["input_ids"][0]
    trained = batch.labelled(made.processor, [SAID], [[SIZE]])["input_ids"][0].tolist()
    for found in (ids, trained):
        if kind == "llama":
            assert found.count(words.bos_token_id) == 1 and found[0] == words.bos_token_id
        else:
            assert words.bos_token is None and found[0] == words.convert_tokens_to_ids("<|im_start|>")


def test_the_configuration_takes_the_tokenizer_s_ids(kind, words):
    config = built(kind, words).model.config
    text = config.text_config
    assert (text.model_type, text.vocab_size) == (kind, len(words))
    assert (text.eos_token_id, text.pad_token_id, text.bos_token_id) == (words.eos_token_id, words.pad_token_id, words.bos_token_id)
    assert words.decode(config.answer_opening) == (
        "<|start_header_id|>assistant<|end_header_id|>\n\n" if kind == "llama" else "<|im_start|>assistant\n"
    )


def test_what_stands_before_the_first_answer_is_the_prompt(kind, words):
    made = built(kind, words)
    inputs = batch.labelled(made.processor, [SAID], [[SIZE]])
    [prompt] = prompts(inputs["input_ids"], inputs["attention_mask"].bool(), made.model.config)
    text = made.processor.apply_chat_template(SAID[:1], add_generation_prompt=True)
    assert words.decode(inputs["input_ids"][0][prompt]) == text.replace(IMAGE, "")


@pytest.mark.parametrize("experts", [{}, tiny.EXPERTS], ids=["plain", "experts"])
def test_an_answer_stops_at_the_template_s_end_of_turn(kind, words, experts):
    made = built(kind, words)
    config = made.model.config
    for name, value in experts.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    made.model = UniMedForConditionalGeneration(config).eval()
    shown = [tiny.marked(tiny.picture(0))]
    inputs = dict(
        made.processor(images=shown, text=made.processor.apply_chat_template(SAID[:1], add_generation_prompt=True), return_tensors="pt")
    )
    with torch.no_grad():
        made.model.lm_head.weight[words.eos_token_id] = 100 * made.model.model(**inputs).last_hidden_state[0, -1]
    written = made.model.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=True)[0, inputs["input_ids"].shape[1] :]
    assert written.tolist() == [words.eos_token_id]
    assert [answer.text for answer in predict.answer(made, [SAID[:1]], shown, max_new_tokens=5)] == [""]


def test_a_model_on_canvases_speaks_it_too_and_both_survive_saving(tmp_path, kind, words):
    made = built(kind, words, canvases=tiled.CANVASES, pixel_shuffle=2)
    made.model.save_pretrained(tmp_path / "model")
    made.processor.save_pretrained(tmp_path / "processor")
    model = UniMedForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    processor = UniMedProcessor.from_pretrained(tmp_path / "processor")
    assert type(model.model.language_model).__name__ == {"llama": "LlamaModel", "qwen2": "Qwen2Model"}[kind]
    shown = [tiny.marked(tiny.picture(0, *tiled.SHAPES[2, 2])), tiny.marked(tiny.picture(1, *tiled.SHAPES[1, 3]))]
    logits = []
    for reader, feeder in ((made.model, made.processor), (model, processor)):
        texts = feeder.apply_chat_template([SAID[:1]] * 2, add_generation_prompt=True)
        inputs = feeder(images=shown, text=texts, padding=True, return_tensors="pt")
        assert (inputs["input_ids"] == words.convert_tokens_to_ids(IMAGE)).sum(1).tolist() == [20, 16]
        with torch.no_grad():
            logits.append(reader(**inputs).logits[:, -1])
    torch.testing.assert_close(*logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_shuffle": 3}, "params.yaml: vlm: pixel_shuffle must divide the 4 patches of a side, is 3"),
        ({"canvases": [(1, 1)]}, "params.yaml: vlm: canvases must hold rows and columns of two tiles or more"),
    ],
)
def test_numbers_of_params_that_do_not_fit_are_refused_in_one_sentence(changes, message):
    with pytest.raises(InputError, match=message):
        built("llama", tiny.processor().tokenizer, **changes)
