"""What the reasoner is asked and shown: problems with the request to reason, and right answers with their thought."""

from dataclasses import replace
from string import ascii_uppercase

from unimed.data.samples import Sample, Turn
from unimed.model.processor import Message
from unimed.train.batch import messages

THINK = "Reason in <think></think>, then answer in <answer></answer>."
"""The request to reason, on a line of its own after the problem."""


def asked(sample: Sample, think: bool) -> Sample:
    """The sample with the request to reason in its last question; without `think`, or when there is nothing to choose, as it is."""
    turn = sample.turns[-1]
    return _with_last(sample, replace(turn, question=f"{turn.question}\n{THINK}")) if think and turn.options else sample


def taught(sample: Sample, think: bool) -> Sample:
    """The sample asked likewise and answered right: a thought and then the option's words, or those words alone.

    Words follow a space, because tokenizers know them best that way; readers of answers strip it.
    """
    turn = asked(sample, think).turns[-1]
    if not turn.options:
        return sample
    option = turn.options[ascii_uppercase.index(turn.solution)]
    answer = f"<think> {turn.rationale}</think><answer> {option}</answer>" if think else f" {option}"
    return _with_last(sample, replace(turn, answer=answer))


def reasoning_messages(sample: Sample, think: bool) -> list[Message]:
    """The sample as a conversation that waits for its last answer, with the request to reason or without."""
    return messages(asked(sample, think))[:-1]


def _with_last(sample: Sample, turn: Turn) -> Sample:
    return replace(sample, turns=(*sample.turns[:-1], turn))
