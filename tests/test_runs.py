"""Masks measured from their run lengths, many at once, are what one finds who unpacks them one by one."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import ndimage

from unimed.data import masks, runs
from unimed.errors import InputError

TOUCHING = np.ones((3, 3))


def measured(rles: list[str], heights: list[int], widths: list[int]) -> list[dict]:
    return runs.measure(pa.array(rles, pa.string()), np.array(heights, np.int32), np.array(widths, np.int32)).to_pylist()


def damaged(rng: np.random.Generator, rle: str) -> str:
    """The run lengths cut short, with a character changed, or made up."""
    place = int(rng.integers(0, len(rle)))
    other = chr(int(rng.integers(40, 126)))
    return (rle[:place], rle[:place] + other + rle[place + 1 :], "".join(map(chr, rng.integers(48, 112, 9))))[int(rng.integers(3))]


def test_area_box_and_parts_are_those_of_the_pixels_and_damage_is_seen_as_masks_decode_sees_it():
    rng = np.random.default_rng(0)
    rles, heights, widths = [], [], []
    for number in range(3000):
        height, width = (int(side) for side in rng.integers(1, 30, 2))
        rle = masks.encode(rng.random((height, width)) < rng.random())
        rles.append(damaged(rng, rle) if number % 4 == 0 else rle)
        heights.append(height + (number % 50 == 1))
        widths.append(width)
    whole = 0
    for rle, height, width, found in zip(rles, heights, widths, measured(rles, heights, widths), strict=True):
        try:
            pixels = masks.decode(rle, height, width)
        except InputError:
            assert not any(found.values())
            continue
        whole += 1
        assert found["unpacks"] and found["area_px"] == pixels.sum()
        assert found["components"] == ndimage.label(pixels, TOUCHING)[1]
        rows, columns = np.nonzero(pixels)
        if len(rows):
            assert (found["left"], found["top"]) == (columns.min(), rows.min())
            assert (found["right"], found["bottom"]) == (columns.max() + 1, rows.max() + 1)
    assert 2000 < whole < 2900, "most masks are sound and many are not"


def test_a_mask_of_known_shape_has_the_numbers_one_counts_by_hand():
    pixels = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1]], dtype=bool)
    [found] = measured([masks.encode(pixels)], [3], [4])
    assert found == {"unpacks": True, "area_px": 4, "components": 2, "left": 0, "top": 0, "right": 4, "bottom": 3}


def test_what_touches_only_across_the_end_of_a_column_is_apart():
    pixels = np.zeros((5, 2), dtype=bool)
    pixels[4, 0] = pixels[0, 1] = True
    [found] = measured([masks.encode(pixels)], [5], [2])
    assert found["components"] == 2, "one run, but the bottom of a column and the top of the next are far apart"


def test_neighbouring_masks_do_not_touch_each_other():
    full = masks.encode(np.ones((4, 4), dtype=bool))
    assert [one["components"] for one in measured([full] * 3, [4] * 3, [4] * 3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("rle", "height", "width"),
    [("", 1, 1), ("1", 0, 5), ("1", -1, -1), ("é0", 1, 1), ("o" * 20, 4, 4), ("oooooo0", 3, 3), ("`", 4, 4), ("9", 2**31 - 1, 2**31 - 1)],
)
def test_text_that_is_no_mask_does_not_unpack_and_spoils_no_other(rle, height, width):
    sound = masks.encode(np.eye(3, dtype=bool))
    before, odd, after = measured([sound, rle, sound], [3, height, 3], [3, width, 3])
    assert before == after == {"unpacks": True, "area_px": 3, "components": 1, "left": 0, "top": 0, "right": 3, "bottom": 3}
    assert not any(odd.values())


def test_there_may_be_no_masks_and_more_than_are_measured_together():
    assert measured([], [], []) == []
    rles = [masks.encode(np.arange(12).reshape(3, 4) < number % 13) for number in range(9000)]
    assert [one["area_px"] for one in measured(rles, [3] * 9000, [4] * 9000)] == [number % 13 for number in range(9000)]
