"""Where the memory of answers that are written together lies, by hand, and what is in it before a word is."""

import torch
from test_siblings import asked, chosen, model

from unimed.rl import shared_attention, siblings


def test_prompts_lie_before_answers_and_each_is_asked_by_rows_of_its_own():
    """Two prompts, the second padded by one; two answers to each with room for four words; three query heads to a key head."""
    at = shared_attention.blocks(torch.tensor([[1, 1, 1], [0, 1, 1]]), siblings=2, room=4, heads=3)
    assert at.first.tolist() == [0, 4, 6, 10, 14, 18, 22]
    assert at.used.tolist() == [3, 2, 0, 0, 0, 0]
    assert at.asking.tolist() == [0, 6, 12, 15, 18, 21, 24]
    assert at.widest == 6
    assert at.newest.tolist() == [6, 10, 14, 18]


def test_room_that_no_word_has_filled_holds_zeros():
    """Torch fills with what is no number whatever nobody has initialised, while it is asked to be deterministic."""
    made, given = model(), asked()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        answers = siblings.Answers(made, given, 2, chosen(new=3))
    finally:
        torch.use_deterministic_algorithms(False)
    prompts = given["input_ids"].numel()
    for memory in answers.memories:
        for side in (memory.keys, memory.values):
            assert len(side) == prompts + 2 * 2 * 3
            assert side[:prompts].any() and not side[prompts:].any()
