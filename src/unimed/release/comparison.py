"""A release beside the champion: the same held-out items, paired, with patients resampled; and every headline metric in every modality."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from unimed.eval import bootstrap
from unimed.eval.bootstrap import Interval
from unimed.release.checks import Check
from unimed.settings import Gate

_SEED = 0
"""Of the resampling: the same scores give the same verdict."""

_DIGITS = 4
"""Decimal places that a bound is held to, as in the ladder."""


@dataclass(frozen=True)
class Champion:
    """The release to be compared with: version, sha256 of its release.json, data by task as DVC hashes them, scores."""

    version: str
    manifest_sha256: str
    data: Mapping[str, str]
    scores: pd.DataFrame


@dataclass(frozen=True)
class Compared:
    """A row of the ladder under two releases: how much better the new one is on the items that both answered, and what follows."""

    name: str
    outcome: Literal["holds", "worse", "not comparable"]
    found: str
    expected: str

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        return f"{self.name}: expected {self.expected}, found {self.found}"


def compare(new: pd.DataFrame, champion: pd.DataFrame, gate: Gate) -> list[Compared]:
    """Each row that has a margin, compared; on too few shared items or patients it is not comparable."""
    return [_compared(name, margin, new, champion, gate) for name, margin in gate.margins.items()]


def _compared(name: str, margin: float, new: pd.DataFrame, champion: pd.DataFrame, gate: Gate) -> Compared:
    ours, theirs = (table[table["row"] == name] for table in (new, champion))
    pairs = ours.merge(theirs[["item", "score"]], on="item", suffixes=("", "_champion"))
    expected = (
        f"at most {margin:g} worse than the champion, on {gate.least_items} or more shared items of {gate.least_patients} or more patients"
    )
    patients = pairs["patient"].nunique()
    if len(pairs) < gate.least_items or patients < gate.least_patients:
        return Compared(name, "not comparable", f"{len(pairs)} shared items of {patients} patients", expected)
    better, worse = ("score_champion", "score") if name in gate.ceilings else ("score", "score_champion")
    found = bootstrap.paired_interval(pairs[better].to_numpy(), pairs[worse].to_numpy(), pairs["patient"].tolist(), _SEED)
    return Compared(name, "holds" if round(found.low + margin, _DIGITS) >= 0 else "worse", _shown(found), expected)


def _shown(found: Interval) -> str:
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}), n {found.n:,}"


def checks(new: pd.DataFrame, data: Mapping[str, str], champion: Champion | None, gate: Gate) -> Iterator[Check]:
    """A check for every row with a margin; without a champion one that says so.

    What cannot be compared because the champion was judged on other data is let through here, since no release on new data would ever pass:
    its promotion takes an override.
    """
    if champion is None:
        yield Check("comparison", "champion", True, "none yet", "one to compare with, if there is any")
        return
    on_other_data = dict(champion.data) != dict(data)
    for row in compare(new, champion.scores, gate):
        let_through = row.outcome == "not comparable" and on_other_data
        note = "; the champion was judged on other data, promotion takes an override" if let_through else ""
        yield Check("comparison", row.name, row.outcome == "holds" or let_through, row.found + note, row.expected)


def modalities(scores: pd.DataFrame, gate: Gate) -> Iterator[Check]:
    """A check for every row with a floor for modalities; it fails too when no modality has enough items to be judged."""
    for name, floor in gate.modality_floors.items():
        groups = sorted(scores[scores["row"] == name].groupby("modality"), key=lambda group: str(group[0]))
        found = [(str(modality), _interval(items)) for modality, items in groups if _is_enough(items, gate)]
        judged = {modality for modality, _ in found}
        others = [f"{modality} ({len(items)})" for modality, items in groups if modality not in judged]
        passed = bool(found) and all(round(one.low - floor, _DIGITS) >= 0 for _, one in found)
        expected = f"a low end of at least {floor:g} in each modality with {gate.least_modality_items} or more items"
        yield Check("quality", f"{name}, by modality", passed, _told(found, others), expected)


def _is_enough(items: pd.DataFrame, gate: Gate) -> bool:
    return len(items) >= gate.least_modality_items and items["patient"].nunique() > 1


def _interval(items: pd.DataFrame) -> Interval:
    return bootstrap.interval(items["score"].to_numpy(), items["patient"].tolist(), _SEED)


def _told(found: Sequence[tuple[str, Interval]], others: Sequence[str]) -> str:
    judged = [f"{modality} {one.mean:.3f} ({one.low:.3f} to {one.high:.3f}), n {one.n:,}" for modality, one in found]
    return "; ".join([*judged, *([f"not judged: {', '.join(others)}"] if others else [])]) or "no such row among the scores"
