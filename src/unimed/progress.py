"""Progress of long work: a bar with rate and time left on a terminal, otherwise one plain line every 30 seconds."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

LINE_SECONDS = 30.0
T = TypeVar("T")

logger = logging.getLogger("progress")


class Ticker:
    """A counter that people can watch: `with Ticker(300, "align") as ticker: ticker.advance(1, loss=0.5)`.

    Only the terminal or the log shows it; nothing reads it back. Zero items are shown as done.
    """

    def __init__(self, total: int, label: str):
        self.total, self.label = total, label
        self.done = 0
        self.shown = ""
        self.bar = _bar() if sys.stderr.isatty() else None
        self.started = self.spoken = time.monotonic()

    def __enter__(self) -> Self:
        self.started = self.spoken = time.monotonic()
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=self.total, shown="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()
        elif kind is None and time.monotonic() - self.started > LINE_SECONDS:
            self._say()

    def advance(self, count: int = 1, **shown: float) -> None:
        """Count `count` more items as done; `shown` are numbers to print beside the counter until the next ones come."""
        self.done += count
        if shown:
            self.shown = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if self.bar:
            self.bar.update(self.task, advance=count, shown=self.shown)
        elif time.monotonic() - self.spoken >= LINE_SECONDS:
            self._say()

    def _say(self) -> None:
        self.spoken = time.monotonic()
        rate = self.done / max(self.spoken - self.started, 1e-9)
        left = (self.total - self.done) / rate if rate else 0.0
        numbers = f", {self.shown}" if self.shown else ""
        logger.info("%s: %d of %d, %.3g/s, %s left%s", self.label, self.done, self.total, rate, _clock(left), numbers)


def track(iterable: Iterable[T], total: int, label: str) -> Iterator[T]:
    """The items of `iterable`, each counted as done when the next one is asked for."""
    with Ticker(total, label) as ticker:
        for item in iterable:
            yield item
            ticker.advance()


class _Rate(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        """The rate, or blank before the first item."""
        return Text(f"{task.speed:.3g}/s" if task.speed else "")


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[shown]}"), console=Console(stderr=True))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
