"""How sure a mean is: intervals from resampled patients.

Slices and questions of one patient are not independent, so patients are drawn, not answers.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Real

from unimed.errors import InputError

Values = Sequence[float | int] | Real[np.ndarray, " item"] | Bool[np.ndarray, " item"]
_DRAWS_AT_ONCE = 4_000_000
"""Group numbers drawn per block, so that many patients do not take gigabytes: 64 MB at a time."""


@dataclass(frozen=True)
class Interval:
    """A mean of `n` values and the bounds it keeps to when patients are resampled; NaN when n is 0."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: Values, groups: Sequence[Hashable], seed: int, samples: int = 1000, level: float = 0.95) -> Interval:
    """The mean of the values with its percentile bootstrap interval over whole groups (patients).

    One group, or none, leaves nothing to resample: low and high equal the mean. The order of the values does not matter.
    Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3; where they draw single observations we draw patients with all
    of their values, so the number of values varies between resamples. No bias correction (their BCa, section 14.3).
    """
    return ratio_interval(values, np.ones(len(values)), groups, seed, samples, level)


def paired_interval(a: Values, b: Values, groups: Sequence[Hashable], seed: int, samples: int = 1000, level: float = 0.95) -> Interval:
    """The mean of a - b over the same items, with its interval over patients."""
    return interval(np.subtract(a, b), groups, seed, samples, level)


def ratio_interval(a: Values, b: Values, groups: Sequence[Hashable], seed: int, samples: int = 1000, level: float = 0.95) -> Interval:
    """The share of b's total that a reaches on the same items, with its interval over patients.

    Resamples in which b totals 0 say nothing and are left out; the ratio is NaN when b totals 0 over all items.
    """
    if not len(a) == len(b) == len(groups):
        raise InputError(f"one group and one value of each kind per item expected, found {len(a)}, {len(b)} and {len(groups)} groups")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("finite values expected, found NaN or infinity among them")
    above, below = _totals(a, groups), _totals(b, groups)
    if not below.sum():
        return Interval(math.nan, math.nan, math.nan, len(a))
    mean = float(above.sum() / below.sum())
    if len(above) == 1:
        return Interval(mean, mean, mean, len(a))
    low, high = np.quantile(_resampled(above, below, seed, samples), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), len(a))


def _totals(values: Values, groups: Sequence[Hashable]) -> Float[np.ndarray, " group"]:
    """The sum of the values of each group, groups in the order of their names."""
    numbers = {group: number for number, group in enumerate(sorted(set(groups), key=repr))}
    totals = np.zeros(len(numbers))
    np.add.at(totals, np.array([numbers[group] for group in groups], dtype=int), np.asarray(values, dtype=float))
    return totals


def _resampled(
    above: Float[np.ndarray, " group"], below: Float[np.ndarray, " group"], seed: int, samples: int
) -> Float[np.ndarray, " sample"]:
    """The ratio of totals in each of `samples` draws of as many groups as there are, with replacement."""
    rng = np.random.default_rng(seed)
    block = max(1, _DRAWS_AT_ONCE // len(above))
    ratios = []
    for done in range(0, samples, block):
        drawn = rng.integers(len(above), size=(min(block, samples - done), len(above)))
        tops, bottoms = above[drawn].sum(1), below[drawn].sum(1)
        ratios.append(tops[bottoms != 0] / bottoms[bottoms != 0])
    return np.concatenate(ratios)
