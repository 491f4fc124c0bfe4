"""How well a mask covers its target, and whether an open answer says the same.

Masks are compared at the image's original size, as `unimed.data.masks.union` gives them from run lengths.
"""

import numpy as np
from jaxtyping import Bool

from unimed.errors import InputError
from unimed.eval.answers import normalise

Mask = Bool[np.ndarray, "_ _"]
"""Pixels of a mask, height by width; the functions below say which sizes have to agree."""


def dice(truth: Mask, prediction: Mask) -> float:
    """Twice the shared pixels over the pixels of both, in [0, 1]: 1 when both are empty, 0 when one is.

    Dice 1945, doi:10.2307/1932409. MedPLIB scores two empty masks 0; here an empty target that is left empty is right.
    """
    shared, total = _overlap(truth, prediction)
    return 2 * shared / total if total else 1.0


def iou(truth: Mask, prediction: Mask) -> float:
    """Shared pixels over covered pixels, in [0, 1]: 1 when both masks are empty, 0 when one is.

    Jaccard 1912, doi:10.1111/j.1469-8137.1912.tb05611.x.
    """
    shared, total = _overlap(truth, prediction)
    return shared / (total - shared) if total else 1.0


def _overlap(truth: Mask, prediction: Mask) -> tuple[int, int]:
    """Pixels that both cover, and the pixels of the one plus the pixels of the other."""
    if truth.shape != prediction.shape:
        raise InputError(
            f"masks of one size expected, found a truth of {truth.shape} and a prediction of {prediction.shape} (height, width)"
        )
    return int(np.count_nonzero(truth & prediction)), int(np.count_nonzero(truth)) + int(np.count_nonzero(prediction))


def open_match(prediction: str, truth: str) -> bool:
    """Whether two answers are the same words in a row, but for case, articles and punctuation.

    The seed's open "accuracy" needs a list of candidate answers; this needs none and gives no credit for a part.
    """
    return normalise(prediction) == normalise(truth)
