"""How well masks and open answers agree."""

import numpy as np
import pytest

from unimed.data import masks
from unimed.errors import InputError
from unimed.eval.metrics import dice, iou, open_match


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((10, 14), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_half_covered_squares_score_by_hand():
    assert dice(square(0, 0, 4), square(0, 2, 4)) == 0.5
    assert iou(square(0, 0, 4), square(0, 2, 4)) == pytest.approx(1 / 3)


def test_equal_masks_score_one_and_disjoint_masks_zero():
    for score in (dice, iou):
        assert score(square(2, 3, 5), square(2, 3, 5)) == 1
        assert score(square(0, 0, 3), square(5, 5, 3)) == 0


def test_an_empty_target_left_empty_is_right_and_anything_else_wrong():
    empty = np.zeros((10, 14), dtype=bool)
    for score in (dice, iou):
        assert (score(empty, empty), score(empty, square(0, 0, 1)), score(square(0, 0, 1), empty)) == (1, 0, 0)


def test_dice_and_iou_keep_their_relation_on_any_masks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.random((2, 9, 7)) < 0.5
        assert dice(one, other) == pytest.approx(2 * iou(one, other) / (1 + iou(one, other)))


def test_scores_survive_run_length_coding():
    truth, prediction = square(1, 1, 6), square(3, 2, 6)
    back = [masks.decode(masks.encode(mask), 10, 14) for mask in (truth, prediction)]
    assert dice(*back) == dice(truth, prediction)


def test_masks_of_two_sizes_are_an_error_that_names_both():
    with pytest.raises(InputError, match=r"\(10, 14\) and a prediction of \(14, 10\)"):
        dice(square(0, 0, 2), square(0, 0, 2).T)


def test_open_answers_match_word_for_word_but_for_case_articles_and_points():
    assert open_match("It is a CT slice of the abdomen", "it is CT slice of abdomen.")
    assert not open_match("It is a CT slice", "It is a CT slice of the abdomen.")
    assert not open_match("3.5 cm", "35 cm")
