"""Answers decoded together: each is what it would be alone, whoever joins, stays or leaves."""

import numpy as np
import pytest
import tiny
import torch

from unimed import answering
from unimed.answering import Question
from unimed.eval import predict
from unimed.eval.decoding import Decoding
from unimed.model import router_use
from unimed.model.assemble import Assembled
from unimed.model.processor import Picture

pytestmark = pytest.mark.slow

LENGTH = 8
ROUTED = [(level, choice) for level in ("sequence", "token") for choice in ("soft", "top1")]


@pytest.fixture(scope="module", params=[None, *ROUTED], ids=str)
def made(request):
    options = {} if request.param is None else {**tiny.EXPERTS, "router_level": request.param[0], "router_choice": request.param[1]}
    return Assembled(tiny.stirred(**options), tiny.processor())


def questions() -> list[Question]:
    """Short and long texts, images of several shapes, none, one and two regions."""
    wide = (20, 50)
    return [
        Question(tiny.picture(0), "Is there a nodule?"),
        Question(tiny.picture(1, *wide), "Which structure is marked? " * 3, (tiny.box(2, 3, 9, 9, wide),)),
        Question(tiny.picture(2), "?", think=True),
        Question(tiny.picture(3), "Do <region> and <region> differ?", (tiny.box(0, 0, 8, 8), tiny.box(9, 9, 20, 20))),
        Question(tiny.picture(4, 64, 10), "yes"),
    ]


def rows(made):
    return [answering.read(made, question, LENGTH) for question in questions()]


def alone(made):
    """The tokens of each question's answer by itself."""
    found = rows(made)
    for row in found:
        decoding = Decoding(made, LENGTH)
        decoding.advance([row])
        while decoding.rows:
            decoding.advance([])
    return found


def test_an_answer_is_what_generate_writes(made):
    for question, row in zip(questions(), alone(made), strict=True):
        [said] = predict.answer(made, [row.conversation], [Picture(question.image, question.regions)], LENGTH)
        [found] = answering.answer(made, [question], LENGTH)
        assert made.processor.tokenizer.decode(row.ids).split("<|end|>")[0] == said.text
        assert tuple(mask["counts"] for mask in found.masks) == said.rles


def test_answers_that_join_one_after_the_other_are_what_they_are_alone(made):
    expected, joining = alone(made), rows(made)
    decoding, waiting = Decoding(made, LENGTH), list(joining)
    sizes = []
    while decoding.rows or waiting:
        decoding.advance([waiting.pop(0)] if waiting else [])
        sizes.append(len(decoding.rows))
    assert max(sizes) > 2
    assert [row.ids for row in joining] == [row.ids for row in expected]
    assert len({tuple(row.ids) for row in joining}) > 3
    for row, other in zip(joining, expected, strict=True):
        torch.testing.assert_close(row.mask_logits, other.mask_logits, atol=1e-4, rtol=0)
        assert [use[:2] for use in row.use.shares()] == [use[:2] for use in other.use.shares()]
        assert np.allclose([use[2] for use in row.use.shares()], [use[2] for use in other.use.shares()], atol=2e-4)


def test_an_answer_goes_on_as_alone_when_the_others_leave(made):
    expected = alone(made)
    for number in range(len(expected)):
        joining = rows(made)
        decoding = Decoding(made, LENGTH)
        decoding.advance(joining)
        decoding.leave([row for place, row in enumerate(joining) if place != number])
        while decoding.rows:
            decoding.advance([])
        assert joining[number].ids == expected[number].ids


def test_all_leave_and_others_come(made):
    decoding = Decoding(made, LENGTH)
    decoding.advance(rows(made))
    decoding.leave(list(decoding.rows))
    later = rows(made)[:1]
    while not decoding.advance(later if not later[0].ids else []):
        pass
    assert later[0].ids == alone(made)[0].ids


def test_an_answer_ends_when_it_says_so_and_not_with_its_batch(made):
    third = alone(made)[0].ids[2]
    made = Assembled(made.model, tiny.processor())
    made.processor.tokenizer.eos_token = made.processor.tokenizer.convert_ids_to_tokens(third)
    joining = rows(made)
    decoding = Decoding(made, LENGTH)
    ended = [decoding.advance(joining), decoding.advance([]), decoding.advance([])]
    assert joining[0] in [row for some in ended for row in some]
    assert joining[0].ids[-1] == third
    assert decoding.said(joining[0]) == made.processor.tokenizer.decode(joining[0].ids[:-1])
    assert decoding.rows


def test_the_router_s_use_is_each_question_s_own(made):
    found = answering.answer(made, questions(), LENGTH)
    assert all(len(reply.router) == (4 if made.model.config.experts else 0) for reply in found)
    if made.model.config.experts:
        for reply in found:
            assert sum(use["share"] for use in reply.router if use["layer"] == 1) == pytest.approx(1, abs=2e-4)
        assert len({reply.router for reply in map(_frozen, found)}) > 1 or made.model.config.router_choice == "top1"


def test_what_a_report_says_of_routers_is_the_sum_of_what_they_chose_for_each_question(made):
    """Whatever was padded or read again for masks, and where answers end one before the other."""
    made = Assembled(made.model, tiny.processor())
    made.processor.tokenizer.eos_token = made.processor.tokenizer.convert_ids_to_tokens(alone(made)[0].ids[2])
    asked, own = rows(made), alone(made)
    assert len({len(row.ids) for row in own}) > 1
    pictures = [Picture(question.image, question.regions) for question in questions()]
    with router_use.watched(made) as use:
        predict.answer(made, [row.conversation for row in asked], pictures, LENGTH)
    assert len(use.totals) == (2 if made.model.config.experts else 0)
    with router_use.watched(made) as single:
        predict.answer(made, [asked[1].conversation], pictures[1:2], LENGTH)
    for layer, total in single.totals.items():
        torch.testing.assert_close(total, own[1].use.totals[layer], atol=2e-3, rtol=1e-3)
    shares = use.shares()
    for layer, total in use.totals.items():
        torch.testing.assert_close(total, sum(row.use.totals[layer] for row in own), atol=2e-3, rtol=1e-3)
    predict.answer(made, [asked[0].conversation], pictures[:1], LENGTH)
    assert use.shares() == shares, "nobody watches any more"


def _frozen(reply):
    return answering.Reply("", "", (), tuple(tuple(use.values()) for use in reply.router))
