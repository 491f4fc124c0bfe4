"""Cases that no run may use again: a table at the project's root, kept in git, that ingest reads and `unimed data erase` adds to."""

import csv
import io
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from unimed import outputs
from unimed.data.splits import Case
from unimed.errors import InputError

FILE = Path("exclusions.csv")
COLUMNS = ("dataset", "case", "reason", "date")


def read(path: Path) -> dict[Case, str]:
    """The reason for each excluded case. Raises InputError for another file, with the line that is at fault."""
    found: dict[Case, str] = {}
    for line, row in _rows(path):
        if len(row) != len(COLUMNS) or not all(row) or not _is_date(row[3]):
            expected = "a data set, a case, a reason and a date such as 2027-01-31"
            raise InputError(f"{path}: expected {expected} in line {line}, found {','.join(row)!r:.120}")
        if (row[0], row[1]) in found:
            raise InputError(f"{path}: expected each case once, found {row[0]}/{row[1]} again in line {line}; remove one of the lines")
        found[row[0], row[1]] = row[2]
    return found


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows below the head that are not empty, with the lines they end in."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            if (head := tuple(next(rows, ()))) != COLUMNS:
                raise InputError(f"{path}: expected columns {','.join(COLUMNS)} in line 1, found {','.join(head)[:120] or 'none'}")
            return [(rows.line_num, row) for row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a table of comma-separated values in UTF-8, found {error}") from error


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def add(path: Path, cases: Iterable[Case], reason: str, day: date) -> list[Case]:
    """The cases that were not in the table yet and are now, all or none. Raises InputError for a reason that is no line of text."""
    if not reason.strip() or not reason.isprintable():
        raise InputError(f"--reason: expected one line of text, found {reason!r:.80}")
    with outputs.alone(path):
        known, text = read(path), path.read_text(encoding="utf-8")
        new = [case for case in dict.fromkeys(cases) if case not in known]
        lines = io.StringIO("" if text.endswith("\n") else "\n")
        lines.seek(0, io.SEEK_END)
        csv.writer(lines, lineterminator="\n").writerows([*case, reason.strip(), day.isoformat()] for case in new)
        partial = outputs.beside(path, ".partial")
        partial.write_text(text + lines.getvalue(), encoding="utf-8")
        outputs.place(partial, path)
    return new
