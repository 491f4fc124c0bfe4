"""Which cases train, which are watched and which are held out: by (data set, case), never by slice."""

import hashlib
from collections.abc import Iterable, Mapping

from unimed.data.tables import SPLITS

Case = tuple[str, str]


def assign(cases: Iterable[Case], shares: Mapping[str, float], seed: int) -> dict[Case, str]:
    """The split of each case, in the given shares as nearly as whole cases allow; the order is a hash of seed and case.

    With two cases or more, train and test get at least one each; a single case trains.
    """
    ordered = sorted(set(cases), key=lambda case: rank(seed, *case))
    quotas = _quotas(len(ordered), shares)
    names = [name for name in SPLITS for _ in range(quotas[name])]
    return dict(zip(ordered, names, strict=True))


def rank(seed: int, *parts: str) -> str:
    """A place in an order that looks random, is the same everywhere, and depends on nothing but seed and parts."""
    return hashlib.sha256("\0".join([str(seed), *parts]).encode()).hexdigest()


def _quotas(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers near `shares` that sum to `count`: the method of largest remainders."""
    quotas = {name: int(count * shares[name]) for name in SPLITS}
    by_remainder = sorted(SPLITS, key=lambda name: quotas[name] - count * shares[name])
    for name in by_remainder[: count - sum(quotas.values())]:
        quotas[name] += 1
    for name in ("train", "test")[:count]:
        if quotas[name] == 0:
            quotas[max(quotas, key=lambda other: quotas[other])] -= 1
            quotas[name] = 1
    return quotas
