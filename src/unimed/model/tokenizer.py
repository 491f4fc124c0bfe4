"""A language model's own tokenizer taken over, or a small one built from text; and what the model must know of either."""

import copy
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from unimed.data.records import REGION, SEG
from unimed.errors import InputError
from unimed.model.processor import IMAGE

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of at most `vocabulary` entries in which the texts' frequent words are single tokens.

    Every text can be written with it; words it has not seen fall apart into bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, USER, ASSISTANT, END, IMAGE, REGION, SEG]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left", chat_template=CHAT_TEMPLATE,
        additional_special_tokens=[USER, ASSISTANT, IMAGE, REGION, SEG],
    )  # fmt: skip


def adopt(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A copy of a language model's tokenizer that can write our placeholders; its chat template and all other ids stay.

    Its end of text becomes the special token with which the template ends an answer, so that generation stops there. It pads on
    the left, with a token that means nothing else, and decodes what was written as it was written. Raises InputError for one
    without a chat template, for a template that ends answers with no special token, and for tokens that do not say where they lie.
    """
    name = tokenizer.name_or_path or "memory"
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer in {name}: expected a chat template, found none; take an instruction-tuned model's or add a chat_template.jinja"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or _places(tokenizer, "a\n\n b") != [0, 1, 2, 3, 4]:
        raise InputError(f"the tokenizer in {name}: expected tokens that cover all of their text, found gaps or none (trim_offsets)")
    adopted = copy.deepcopy(tokenizer)
    adopted.add_special_tokens({"additional_special_tokens": [IMAGE, REGION, SEG]}, replace_extra_special_tokens=False)
    adopted.eos_token = answer_end(adopted)
    if adopted.pad_token in (None, adopted.eos_token):
        adopted.add_special_tokens({"pad_token": PAD})
    adopted.padding_side, adopted.clean_up_tokenization_spaces = "left", False
    # What is not among these is forgotten when a tokenizer is saved.
    adopted.init_kwargs |= {"padding_side": "left", "clean_up_tokenization_spaces": False}
    return adopted


def _places(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The characters of a text that its tokens say they cover, in their order."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [place for start, end in offsets for place in range(start, end)]


def answer_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """The first special token that the chat template writes after an answer. Raises InputError when it writes none."""
    answer = "answered"
    said = tokenizer.apply_chat_template([{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}], tokenize=False)
    after = tokenizer(said[said.rindex(answer) + len(answer) :], add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    ends = [str(added[token]) for token in after if token in added and added[token].special]
    if not ends:
        name = tokenizer.name_or_path or "memory"
        raise InputError(f"the tokenizer in {name}: expected a chat template that ends answers with a special token, found {said!r}")
    return ends[0]


def known(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What UniMedConfig holds of a tokenizer: the ids of the placeholders and how the chat template opens an answer."""
    ids = {"image_token_id": IMAGE, "region_token_id": REGION, "seg_token_id": SEG}
    return {name: special_id(tokenizer, token) for name, token in ids.items()} | {"answer_opening": answer_opening(tokenizer)}


def special_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a token that must be one token; InputError when the tokenizer splits it."""
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(f"expected {token} to be one token of the tokenizer in {tokenizer.name_or_path or 'memory'}, found {len(ids)}")
    return ids[0]


def answer_opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids with which the chat template opens an answer. Raises InputError when it rewrites the question to do so."""
    question = [{"role": "user", "content": "?"}]
    closed = tokenizer.apply_chat_template(question, tokenize=False)
    opened = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    if not opened.startswith(closed):
        raise InputError(f"expected a chat template that opens an answer after the question, found {closed!r} and {opened!r}")
    return tokenizer(opened.removeprefix(closed), add_special_tokens=False)["input_ids"]
