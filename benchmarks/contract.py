"""The data contract at the size of SA-Med2D-20M: seconds and memory of the table checks. What pixels cost is in benchmarks/data.py.

Run it alone on a machine: `python -m benchmarks.contract`. Most of its time goes to making 20 million masks.
"""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer
import yaml

from benchmarks.contract_tables import (
    MASKS_PER_CONVERSATION,
    MASKS_PER_IMAGE,
    write_image_facts,
    write_mask_facts,
    write_tables,
)
from unimed import environment
from unimed.config import Validate
from unimed.data import facts, judging, passing
from unimed.data.promises import contract as promised


@dataclass
class Watch:
    """Seconds of each step, and the most memory that this process and its children held together."""

    seconds: dict[str, float] = field(default_factory=dict)
    peak: int = 0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Take the time of a block."""
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Look at the memory every tenth of a second; what processes share counts once."""
        done = threading.Event()
        thread = threading.Thread(target=self._look, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _look(self, done: threading.Event) -> None:
        own = psutil.Process()
        while not done.wait(0.1):
            held = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    held += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it has just ended
            self.peak = max(self.peak, held)


def at_size(count: int, bounds: Validate, place: Path) -> None:
    """Hold tables of `count` masks against the contract, their facts being known, and print what each step took."""
    subset, folder, watch, promises = place / "subset", place / "facts", Watch(), promised(bounds)
    for one in (subset, folder):
        one.mkdir(parents=True)
    write_tables(subset, count)
    write_image_facts(subset, folder)
    write_mask_facts(subset, folder)
    with watch.memory():
        began = time.perf_counter()
        with facts.joined(subset, folder, {}) as connection:
            watch.seconds["table checks: joined"] = time.perf_counter() - began
            with watch.step("table checks: offenders found"):
                outcomes, evidence = judging.find(connection, promises)
            with watch.step("table checks: Great Expectations, with its import"):
                judging.agree(evidence, promises)
            with watch.step("table checks: what depends on them"):
                passing.leave_out(connection, promises)
            with watch.step("tables written"):
                kept = passing.write(connection, subset, place / "valid")
    assert not [outcome for outcome in outcomes if outcome.failed] and kept["masks"] == count, "sound tables raise no alarm"
    checks = sum(seconds for name, seconds in watch.seconds.items() if name.startswith("table checks"))
    told = {"images": count // MASKS_PER_IMAGE, "conversations": count // MASKS_PER_CONVERSATION}
    _table(
        f"{count:,} masks, " + ", ".join(f"{number:,} {name}" for name, number in told.items()),
        {
            **{name: f"{seconds:.1f} s" for name, seconds in watch.seconds.items()},
            "table checks in all": f"{checks:.1f} s",
            "most memory": f"{watch.peak / 2**30:.2f} GiB",
        },
    )


def _table(title: str, rows: dict[str, str]) -> None:
    typer.echo(f"| {title} | |\n|---|---|")
    for name, value in rows.items():
        typer.echo(f"| {name} | {value} |")
    typer.echo("")


def main(
    masks: Annotated[int, typer.Option(min=64, help="Rows of the table of masks, without pictures.")] = 20_000_000,
) -> None:
    """Print the table."""
    environment.settle()
    bounds = Validate.model_validate(yaml.safe_load(Path("params.yaml").read_text())["validate"])
    with tempfile.TemporaryDirectory(prefix="unimed-contract-") as scratch:
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"
        at_size(masks, bounds, Path(scratch) / "tables")


if __name__ == "__main__":
    typer.run(main)
