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
COLUMNS = ["dataset", "case", "reason", "date"]


def read(path: Path) -> dict[Case, str]:
    """Why each case is excluded. Raises InputError with file and line for what is no such table."""
    found: dict[Case, str] = {}
    for number, row in enumerate(_rows(path), 2):
        dataset, case, reason, day = row if len(row) == len(COLUMNS) else (*row, "", "", "", "")[:4]
        if not (len(row) == len(COLUMNS) and dataset and case and reason and _is_date(day)):
            raise InputError(f"{path}, line {number}: expected {', '.join(COLUMNS)} (a date as 2027-01-31), found {','.join(row)!r:.120}")
        if (dataset, case) in found:
            raise InputError(f"{path}, line {number}: expected each case once, found {dataset}/{case} again; remove one of the lines")
        found[dataset, case] = reason
    return found


def _rows(path: Path) -> list[list[str]]:
    """The lines below the head."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = list(csv.reader(file, strict=True)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        found = "none" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"{path}: expected a table with the columns {','.join(COLUMNS)}, found {found}") from error
    if head != COLUMNS:
        raise InputError(f"{path}: expected the columns {','.join(COLUMNS)} in the first line, found {','.join(head)!r:.120}")
    return rows


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def add(path: Path, cases: Iterable[Case], reason: str, day: date) -> list[Case]:
    """Add cases that are not in the table yet, all or none, and give them back. Raises InputError for a reason that is no line of text."""
    if not reason.strip() or not reason.isprintable():
        raise InputError(f"--reason: expected one line of text, found {reason!r:.80}")
    with outputs.alone(path):
        known, text = read(path), path.read_text(encoding="utf-8")
        new = [case for case in dict.fromkeys(cases) if case not in known]
        lines = io.StringIO("" if text.endswith("\n") else "\n")
        lines.seek(0, io.SEEK_END)
        csv.writer(lines, lineterminator="\n").writerows([*case, reason.strip(), day.isoformat()] for case in new)
        with outputs.complete({"table": path}) as partial:
            partial["table"].write_text(text + lines.getvalue(), encoding="utf-8")
    return new
