"""Small charts as SVG text: curves over steps, intervals on a line, shares as a heat map.

Colours come from the page's style sheet; every text put in is escaped, so the results may enter a page as they are.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Float

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 300, 130, 54, 6, 8, 20
_CELL_W, _CELL_H = 36, 28
_SHORT_SERIES = 20


def curve(steps: Sequence[float | int], values: Sequence[float | int], label: str) -> str:
    """Values over steps as a faint line with a strong running mean; axes are labelled at their ends."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1 * max(abs(high), 1)
    across = np.interp(steps, (min(steps), max(steps)), (_LEFT, _WIDTH - _RIGHT))

    def down(heights: Sequence[float | int]) -> Float[np.ndarray, " value"]:
        return np.interp(heights, (low - margin, high + margin), (_HEIGHT - _BOTTOM, _TOP))

    ticks = "".join(_tick(y, at) for at, y in zip((low, high), down([low, high]), strict=True))
    raw = _polyline("raw", across, down(values)) if len(values) > _SHORT_SERIES else ""
    line = _polyline("line", across, down(_running_mean(values)))
    ends = f'<text x="{_LEFT}" y="{_HEIGHT - 4}">{min(steps):g}</text>'
    ends += f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" class="end">{max(steps):g} steps</text>'
    heading = f'role="img" aria-label="{escape(label)}: {short(values[0])} to {short(values[-1])}"'
    return f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" {heading}>{ticks}{raw}{line}{ends}</svg>'


def _polyline(kind: str, across: Float[np.ndarray, " value"], down: Float[np.ndarray, " value"]) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'


def _tick(y: float, at: float | int) -> str:
    line = f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" class="end">{short(at)}</text>'


def short(number: float | int) -> str:
    """The number with three digits that count, in powers of ten where it is very small or large."""
    return f"{number:.3g}" if number == 0 or 0.001 <= abs(number) < 10_000 else f"{number:.0e}"


def _running_mean(values: Sequence[float | int]) -> Sequence[float | int]:
    """The mean over a tenth of the values around each, fewer at the ends; short series stay as they are."""
    half = len(values) // _SHORT_SERIES
    totals = np.concatenate([[0.0], np.cumsum(values)])
    bounds = [(max(0, place - half), min(len(values), place + half + 1)) for place in range(len(values))]
    return [float((totals[end] - totals[start]) / (end - start)) for start, end in bounds]


def whisker(value: float | int, low: float | int, high: float | int, baseline: float | int | None) -> str:
    """A dot at a share, a bar for its interval and a tick at the baseline on a line from 0 to 1."""
    dot, start, end, mark = (4 + 172 * min(1.0, max(0.0, share)) for share in (value, low, high, baseline or 0.0))
    tick = "" if baseline is None else f'<line class="base" x1="{mark:.1f}" x2="{mark:.1f}" y1="2" y2="14"/>'
    axis = '<line class="axis" x1="4" x2="176" y1="8" y2="8"/>'
    bar = f'<line class="range" x1="{start:.1f}" x2="{end:.1f}" y1="8" y2="8"/><circle cx="{dot:.1f}" cy="8" r="2.6"/>'
    return f'<svg class="whisker" viewBox="0 0 180 16" aria-hidden="true">{axis}{tick}{bar}</svg>'


def heat_map(shares: Mapping[tuple[str, int], float], label: str) -> str:
    """Shares in [0, 1] by task (row) and layer (column), darker where larger, each cell with its per cent."""
    tasks = list(dict.fromkeys(task for task, _ in shares))
    layers = sorted({layer for _, layer in shares})
    left = 12 + 8 * max(map(len, tasks))
    width, height = left + _CELL_W * len(layers) + 4, _CELL_H * len(tasks) + 34
    heads = "".join(f'<text class="mid" x="{left + _CELL_W * (x + 0.5):.0f}" y="28">{layer}</text>' for x, layer in enumerate(layers))
    names = "".join(
        f'<text class="end" x="{left - 8}" y="{34 + _CELL_H * (y + 0.5) + 3:.0f}">{escape(task)}</text>' for y, task in enumerate(tasks)
    )
    cells = "".join(
        _cell(left + _CELL_W * layers.index(layer), 34 + _CELL_H * tasks.index(task), share) for (task, layer), share in shares.items()
    )
    title = f'<text x="{left}" y="12">layer</text>'
    heading = f'style="width:{width}px" role="img" aria-label="{escape(label)}"'
    return f'<svg class="heat" viewBox="0 0 {width} {height}" {heading}>{title}{heads}{names}{cells}</svg>'


def _cell(x: int, y: int, share: float) -> str:
    opacity = 0.06 + 0.94 * min(1.0, max(0.0, share))
    box = f'<rect x="{x}" y="{y}" width="{_CELL_W - 2}" height="{_CELL_H - 2}" rx="2" fill-opacity="{opacity:.2f}"/>'
    number = "–" if math.isnan(share) else f"{100 * share:.0f}"
    return (
        f'{box}<text class="mid{" strong" if share > 0.5 else ""}" x="{x + _CELL_W / 2 - 1}" y="{y + _CELL_H / 2 + 3:.0f}">{number}</text>'
    )
