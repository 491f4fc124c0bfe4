"""Which cases train, which are watched and which are held out: by (data set, case) and whatever is tied to it, never by slice."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from unimed.data.tables import SPLITS

Case = tuple[str, str]
Placed = tuple[tuple[Case, ...], str]
"""Cases that stay together, and their split."""

log = logging.getLogger(__name__)


def assign(
    cases: Iterable[Case], shares: Mapping[str, float], seed: int, groups: Iterable[Sequence[Case]] = (), held_out: Iterable[Case] = ()
) -> dict[Case, str]:
    """The split of each case, in the given shares as nearly as whole groups allow; the order is a hash of seed and case.

    What is held out is in test, with all that is tied to it; the others are shared out. All cases of a group are in one split, the largest
    groups where most is missing. Train and test get at least one group or single case each; one alone trains. What groups make
    impossible is said in the log.
    """
    tied = [tuple(sorted(group, key=lambda case: rank(seed, *case))) for group in groups]
    away = set(held_out)
    away |= {case for group in tied if away & set(group) for case in group}
    free = [group for group in tied if not away & set(group)]
    ordered = sorted(set(cases), key=lambda case: rank(seed, *case))
    split = _shared_out([case for case in ordered if case not in away], shares, sorted(free, key=lambda group: rank(seed, *group[0])))
    return {case: "test" if case in away else split[case] for case in ordered}


def _shared_out(ordered: Sequence[Case], shares: Mapping[str, float], groups: Sequence[tuple[Case, ...]]) -> dict[Case, str]:
    """The split of each case: groups first, the largest where most is missing, then single cases in order into what room is left."""
    asked = _quotas(len(ordered), shares)
    room, placed = dict(asked), []
    for group in sorted(groups, key=len, reverse=True):
        name = max(SPLITS, key=lambda name: room[name])
        room[name] -= len(group)
        placed.append((group, name))
    together = {case for group in groups for case in group}
    single = [(case,) for case in ordered if case not in together]
    most = {name: max(room[name], 0) for name in SPLITS}
    left = _shared(len(single), {name: count / (sum(most.values()) or 1) for name, count in most.items()})
    placed += zip(single, (name for name in SPLITS for _ in range(left[name])), strict=True)
    split = {case: name for group, name in _both_ends(placed) for case in group}
    if groups:
        _tell(split, asked, max(len(group) for group in groups))
    return split


def rank(seed: int, *parts: str) -> str:
    """A place in an order that looks random, is the same everywhere, and depends on nothing but seed and parts."""
    return hashlib.sha256("\0".join([str(seed), *parts]).encode()).hexdigest()


def _quotas(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers near `shares` that sum to `count`, with one for train and one for test before any other."""
    quotas = _shared(count, shares)
    for name in ("train", "test")[:count]:
        if quotas[name] == 0:
            quotas[max(quotas, key=lambda other: quotas[other])] -= 1
            quotas[name] = 1
    return quotas


def _shared(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers near `shares` that sum to `count`: the method of largest remainders."""
    parts = {name: int(count * shares[name]) for name in SPLITS}
    by_remainder = sorted(SPLITS, key=lambda name: parts[name] - count * shares[name])
    for name in by_remainder[: count - sum(parts.values())]:
        parts[name] += 1
    return parts


def _both_ends(placed: Sequence[Placed]) -> list[Placed]:
    """The same, but where train or test has nothing it gets the smallest group of those that can be spared; train is served first."""
    found = list(placed)
    for empty, served in (("train", ""), ("test", "train")):
        names = Counter(name for _, name in found)
        spare = [place for place, (_, name) in enumerate(found) if name != served or names[name] > 1]
        if not names[empty] and spare:
            place = min(spare, key=lambda place: (len(found[place][0]), -names[found[place][1]], place))
            found[place] = (found[place][0], empty)
    return found


def _tell(split: Mapping[Case, str], asked: Mapping[str, int], largest: int) -> None:
    """Say where groups of cases that look alike keep the splits from their shares."""
    found = Counter(split.values())
    if found["test"] == 0:
        log.warning("splits: all %d cases look alike, directly or over others; none is left to be held out", len(split))
    elif any(abs(found[name] - asked[name]) > max(1, len(split) // 100) for name in SPLITS):
        told = ", ".join(f"{name} {found[name]} of {asked[name]}" for name in SPLITS)
        log.warning("splits: %d cases look alike and stay together, which leaves %s cases asked for", largest, told)
