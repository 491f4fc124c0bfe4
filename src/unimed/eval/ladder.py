"""The ladder: what each stage reached, how sure that is, and what a baseline reaches."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from unimed.errors import InputError
from unimed.eval.bootstrap import Interval


@dataclass(frozen=True)
class Row:
    """One metric of one stage with its interval over `n` items; a number that does not exist is None."""

    stage: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    baseline: float | None = None


def measured(stage: str, metric: str, found: Interval, baseline: float | None = None) -> Row:
    """The row of an interval; NaN becomes None."""
    return Row(stage, metric, _rounded(found.mean), _rounded(found.low), _rounded(found.high), found.n, _rounded(baseline))


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as JSON: a list of objects with the fields of Row, numbers rounded to four places."""
    path.write_text(to_json(rows), encoding="utf-8")


def read(path: Path) -> list[Row]:
    """The rows of a ladder.json. Raises InputError when there is none or it is built otherwise."""
    try:
        return [Row(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: expected a ladder of evaluate, found {error}") from error


def side_by_side(ladders: Mapping[str, Sequence[Row]]) -> str:
    """Several ladders as a Markdown table, a column each: value, interval, and the baseline after "vs"; `n` is the smallest."""
    found = {name: {(row.stage, row.metric): row for row in rows} for name, rows in ladders.items()}
    keys = dict.fromkeys(key for rows in found.values() for key in rows)
    lines = [["stage", "metric", "n", *found], ["---"] * (3 + len(found))]
    for stage, metric in keys:
        rows = [found[name].get((stage, metric)) for name in found]
        fewest = min(row.n for row in rows if row)
        lines.append([stage, metric, f"{fewest:,}", *map(_cell, rows)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: Row | None) -> str:
    if row is None or row.value is None:
        return "–"
    bounds = "" if row.low is None or row.high is None else f" ({row.low:.3f}–{row.high:.3f})"
    return f"{row.value:.3f}{bounds}" + ("" if row.baseline is None else f" vs {row.baseline:.3f}")


def to_json(rows: Sequence[Row]) -> str:
    """The rows as a JSON list, one row a line."""
    fields = ({key: _rounded(value) if isinstance(value, float) else value for key, value in asdict(row).items()} for row in rows)
    lines = ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in fields)
    return f"[\n{lines}\n]\n" if rows else "[]\n"


def _rounded(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else round(float(number), 4)


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text: stage (once), metric, value, interval, n, baseline."""
    head = ("stage", "metric", "value", "95 % interval", "n", "baseline")
    cells = [head, *(_cells(row, above) for row, above in zip(rows, [None, *rows], strict=False))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(_aligned(line, widths)).rstrip() for line in cells)


def _cells(row: Row, above: Row | None) -> tuple[str, ...]:
    stage = "" if above and above.stage == row.stage else row.stage
    bounds = "" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
    return stage, row.metric, _shown(row.value), bounds, f"{row.n:,}", _shown(row.baseline)


def _shown(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"


def _aligned(line: tuple[str, ...], widths: list[int]) -> list[str]:
    """The first two cells to the left, numbers to the right."""
    return [cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in enumerate(zip(line, widths, strict=True))]
