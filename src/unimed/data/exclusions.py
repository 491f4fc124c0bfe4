"""Cases that are never packed, by the tracked file `exclusions.csv`: patients who were erased, and whatever else must not be used."""

import csv
from pathlib import Path

from unimed.data.splits import Case
from unimed.errors import InputError

COLUMNS = ("dataset", "case", "reason", "date")


def read(path: Path) -> dict[Case, str]:
    """The reason for each excluded case. Raises InputError for another file, with the line that is at fault."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            if (found := tuple(next(rows, ()))) != COLUMNS:
                raise InputError(f"{path}: expected columns {','.join(COLUMNS)} in line 1, found {','.join(found) or 'none'}")
            return dict(_case(path, rows.line_num, row) for row in rows if row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a table of comma-separated values in UTF-8, found {error}") from error


def _case(path: Path, line: int, row: list[str]) -> tuple[Case, str]:
    if len(row) != len(COLUMNS) or not all(row[:3]):
        raise InputError(f"{path}: expected a data set, a case, a reason and a date in line {line}, found {','.join(row)}")
    return (row[0], row[1]), row[2]
