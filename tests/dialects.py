"""Tokenizers and chat templates in the layouts of Llama 3 and Qwen 2.5, each with a few hundred entries."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LLAMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n\\n' + system + '<|eot_id|>' }}"
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How both cut text into words before byte pairs are merged."""

TEXTS = [
    "Is there a nodule? yes no\n\n", "assistant user system\n", "Which structure is marked? the liver.\n\n", "It is there. 37 °C\n\n",
    "Cutting Knowledge Date: December 2023\n\n", "You are a helpful assistant.\n",
] * 4  # fmt: skip


def _byte_pairs(special: list[str]) -> Tokenizer:
    """Byte pairs with the special tokens behind them, as both have them."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def llama(trim_offsets: bool = False, **changes: object) -> PreTrainedTokenizerFast:
    """Puts its beginning before every text, has no padding, and names an end of text that its template never writes."""
    made = _byte_pairs(["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    begin = made.token_to_id("<|begin_of_text|>")
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=trim_offsets),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]),
        ]
    )
    fields = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "chat_template": LLAMA_TEMPLATE}
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=True, **fields | changes)


def qwen(**changes: object) -> PreTrainedTokenizerFast:
    """Has no beginning, pads with the end of text, and its template goes on after an answer's end."""
    made = _byte_pairs(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    fields = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": QWEN_TEMPLATE}
    return PreTrainedTokenizerFast(tokenizer_object=made, **fields | changes)
