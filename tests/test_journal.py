"""The journal: which entries count, who is champion by them, and which overrides stand."""

from dataclasses import replace
from datetime import UTC, date, datetime

from unimed.release import journal
from unimed.release.journal import Entry, Override, Release

OVERRIDE = Override("ann", "a new scanner", date(2027, 3, 1))


def entry(number: int, action: journal.Action, before: str | None, version: str) -> Entry:
    when = datetime(2027, 1, 15, 8, 0, number, tzinfo=UTC)
    return Entry(number, action, version, before, "ann", "", when, None, f"hash of {version}", "")


def read(*changes: tuple[journal.Action, str, str]) -> list[Entry]:
    """The entries that count, of entries numbered from 1; nobody is written as "" before the first."""
    tried = [entry(number, action, before or None, version) for number, (action, before, version) in enumerate(changes, start=1)]
    return journal.counting(tried)


def numbers(*changes: tuple[str, str, str]) -> list[int]:
    return [entry.number for entry in read(*changes)]


def test_an_empty_journal_has_no_champion():
    assert read() == [] and journal.champion([]) is None and journal.line([]) == []


def test_of_changes_from_the_same_champion_the_first_counts():
    assert numbers(("promote", "", "1"), ("promote", "1", "2"), ("promote", "1", "3"), ("promote", "", "4"), ("promote", "2", "5")) == [
        1,
        2,
        5,
    ]


def test_a_loser_does_not_count_later_when_its_champion_is_back():
    changes = [("promote", "", "1"), ("promote", "1", "2"), ("promote", "1", "3"), ("rollback", "2", "1")]
    assert numbers(*changes) == [1, 2, 4]


def test_a_rollback_goes_to_the_champion_before_and_two_go_back_two():
    changes = [("promote", "", "1"), ("promote", "1", "2"), ("promote", "2", "3"), ("rollback", "3", "2"), ("rollback", "2", "1")]
    assert [release.version for release in journal.line(read(*changes[:4]))] == ["1", "2"]
    assert [release.version for release in journal.line(read(*changes))] == ["1"]
    assert journal.champion(read(*changes)) == "1"


def test_a_rollback_to_any_other_does_not_count():
    assert numbers(("rollback", "", "1"), ("promote", "", "1"), ("rollback", "1", "1")) == [2]
    assert numbers(("promote", "", "1"), ("promote", "1", "2"), ("promote", "2", "3"), ("rollback", "3", "1")) == [1, 2, 3]


def test_what_was_rolled_back_from_is_skipped():
    changes = [("promote", "", "1"), ("promote", "1", "2"), ("rollback", "2", "1"), ("promote", "1", "3"), ("rollback", "3", "1")]
    assert numbers(*changes) == [1, 2, 3, 4, 5]
    assert [release.version for release in journal.line(read(*changes))] == ["1"]


def test_a_promotion_of_the_champion_itself_does_not_count():
    assert numbers(("promote", "", "1"), ("promote", "1", "1")) == [1]


def test_a_rollback_to_another_release_under_the_same_number_does_not_count():
    entries = [entry(1, "promote", None, "1"), entry(2, "promote", "1", "2"), entry(3, "rollback", "2", "1")]
    assert journal.counting(entries) == entries
    assert journal.counting([*entries[:2], replace(entries[2], manifest_sha256="another")]) == entries[:2]


def test_an_override_stands_from_the_last_promotion_of_its_release_and_expires_after_its_day():
    first, second = entry(1, "promote", None, "1"), replace(entry(2, "promote", "1", "2"), override=OVERRIDE)
    back, again = entry(3, "rollback", "2", "1"), entry(4, "promote", "1", "2")
    assert journal.overrides([first, second, back], "2") == [OVERRIDE]
    assert journal.overrides([first, second, back], "1") == []
    assert journal.overrides([first, second, back, again], "2") == []
    assert not OVERRIDE.expired(date(2027, 3, 1)) and OVERRIDE.expired(date(2027, 3, 2))


def test_an_entry_names_its_release_by_number_and_hash():
    assert entry(1, "promote", None, "4").release == Release("4", "hash of 4")
