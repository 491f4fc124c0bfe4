"""A small byte-level tokenizer with a chat template, built from text; and what the model must know of any tokenizer."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from unimed.errors import InputError
from unimed.model.processor import IMAGE, REGION, SEG

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


def adopt(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A language model's own tokenizer with our placeholders and, where it has none, a token to pad with; its chat template stays.

    Raises InputError for one without a chat template: what the model was taught cannot be guessed.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{tokenizer.name_or_path}: expected a tokenizer with a chat template, found none; add a chat_template.jinja to it"
        )
    tokenizer.add_tokens([IMAGE, REGION, SEG], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    return tokenizer


def special_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a token that must be one token; InputError when the tokenizer splits it."""
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(f"expected {token} to be one token of the tokenizer in {tokenizer.name_or_path or 'memory'}, found {len(ids)}")
    return ids[0]


def answer_opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids with which the chat template opens an answer."""
    question = [{"role": "user", "content": "?"}]
    closed = tokenizer.apply_chat_template(question, tokenize=False)
    opened = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    return tokenizer(opened.removeprefix(closed), add_special_tokens=False)["input_ids"]
