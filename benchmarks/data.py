"""What data cost at the size of SA-Med2D-20M, each number beside a baseline of the same run: packing, memory, access, validation, tables.

Run it alone on a machine: `python -m benchmarks.data --scratch FOLDER`; 100,000 images take 60 GB there. To make them takes most of the
time: with `--raw FOLDER` they are kept for another run.
"""

import json
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
import yaml
from PIL import Image

from benchmarks import contract_tables, release_rows, tree
from unimed import environment
from unimed.config import Ingest, Split, Validate
from unimed.data import contract, facts, ingest, judging, masks, promises, raw, samples
from unimed.data.tables import Tables

SETTINGS = Ingest(split=Split(train=0.9, val=0.05, test=0.05), max_bad_fraction=0, max_pixels=2**25, shard_size_mb=64, licences={})
ROUNDS = 3
MIB = 2**20


def measured(work: Callable[..., None], *arguments: Any) -> tuple[float, float]:
    """Seconds and the most MiB of a function in a process of its own, its children counted with it and shared pages once."""
    child = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    began, most = time.perf_counter(), 0
    child.start()
    while child.is_alive():
        most = max(most, _held(child.pid or 0))
        child.join(0.5)  # a look takes milliseconds and stops the process it looks at
    if child.exitcode:
        raise RuntimeError(f"{work.__name__} ended with {child.exitcode}")
    return time.perf_counter() - began, most / MIB


def _held(pid: int) -> int:
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_full_info().pss
    except psutil.Error:
        return 0  # it has just ended
    return total


def decoding(root: Path, numbers: list[int]) -> float:
    """Seconds of one core for the pixels of an image and its masks, the median of a few rounds."""
    files = [root / raw.PIXELS / path for number in numbers for path in (f"images/{tree.stem(number)}.png", *tree.masks(number))]
    return _median(_pixels, files) / len(numbers)


def _pixels(file: Path) -> None:
    np.asarray(Image.open(file))


def _median(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Seconds for all items, each let go before the next, as a loader does."""
    _seconds(work, items)  # warms the page cache
    return statistics.median(_seconds(work, items) for _ in range(ROUNDS))


def _seconds(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    began = time.perf_counter()
    for item in items:
        work(item)
    return time.perf_counter() - began


def view(whole: Path, root: Path, count: int) -> Path:
    """A download of the first images of a larger one; gives `root`."""
    root.mkdir()
    (root / raw.PIXELS).mkdir()
    for part in ("images", "masks"):
        (root / raw.PIXELS / part).mkdir()
    for number in range(count):
        for path in (f"images/{tree.stem(number)}.png", *tree.masks(number)):
            os.link(whole / raw.PIXELS / path, root / raw.PIXELS / path)
    return tree.annotate(root, count)


def _ingest(root: Path, out: Path) -> None:
    ingest.write(root, out / "shards", out / "tables", seed=0, ingest=SETTINGS)


def packing(whole: Path, scratch: Path, counts: list[int]) -> Iterator[tuple[str, str, str, str]]:
    """Rate against decoding alone and memory, at each size; the last one's outputs stay in `scratch`/out."""
    cores = os.cpu_count() or 1
    for count in counts:
        root = whole if count == counts[-1] else view(whole, scratch / f"raw-{count}", count)
        looked = random.Random(0).sample(range(count), min(count, 200))
        out = scratch / ("out" if count == counts[-1] else f"out-{count}")
        before = decoding(root, looked)
        seconds, most = measured(_ingest, root, out)
        alone = (before + decoding(root, looked)) / 2  # a machine is not as fast at one time as at another
        told = f"{count / seconds:.0f} images/s, {most:.0f} MiB"
        if count != counts[-1]:
            shutil.rmtree(root)
            shutil.rmtree(out)
        yield f"ingest, {count:,} images", told, f"{cores / alone:.0f} images/s decoded", f"{alone * count / cores / seconds:.0%} (bar 80%)"


def access(root: Path, out: Path, tries: int) -> Iterator[tuple[str, str, str, str]]:
    """A training sample at random against decoding its image, and masks from run lengths against masks from PNG."""
    read = samples.read(out / "tables", out / "shards", "train")
    chosen = [read[number] for number in random.Random(0).sample(range(len(read)), min(tries, len(read)))]
    paths = [root / raw.PIXELS / "images" / f"{sample.sample_id}.png" for sample in chosen]
    ours = _median(lambda sample: (sample.load_image(), [(turn.regions, turn.targets) for turn in sample.turns]), chosen)
    plain = _median(lambda path: Image.open(path).convert("RGB"), paths)
    yield (
        "a training sample",
        f"{len(chosen) / ours:.0f}/s",
        f"{len(chosen) / plain:.0f}/s, its image decoded",
        f"{plain / ours:.0%} (bar 90%)",
    )
    rows = Tables.read(out / "tables").masks.head(tries).to_dict("records")
    files = [root / raw.PIXELS / "masks" / f"{row['mask_id']}.png" for row in rows]
    ours = _median(lambda row: masks.decode(row["rle"], row["height"], row["width"]), rows)
    plain = _median(_pixels, files)
    yield "a mask", f"{len(rows) / ours:.0f}/s", f"{len(rows) / plain:.0f}/s from PNG", f"{plain / ours:.1f} x (bar 10 x)"


def validation(out: Path) -> Iterator[tuple[str, str, str, str]]:
    """A first validation of all that was packed, others when nothing changed, and what Great Expectations takes of it."""
    bounds = Validate.model_validate(yaml.safe_load(Path("params.yaml").read_text())["validate"])
    contract_tables.write_manifest(out / "tables")
    seconds = []
    for number in range(1 + ROUNDS):
        valid = out / f"valid-{number}"
        seconds.append(_seconds(lambda place: contract.write(out / "tables", out / "shards", place, bounds), [valid]))
    first, again = seconds[0], statistics.median(seconds[1:])
    with facts.opened(out / "tables", out / "shards") as connection:
        _, evidence = judging.find(connection, promises.contract(bounds))
        judged = _seconds(lambda found: judging.expect(found, promises.contract(bounds)), [evidence])
    yield "a second validation, nothing changed", f"{again:.1f} s", f"{first:.1f} s, the first", f"{again / first:.1%} (bar 5%)"
    yield "Great Expectations, its import aside", f"{judged:.1f} s", f"{first:.1f} s, the first", f"{judged / first:.1%} (bar 20%)"


def stages(scratch: Path, images: int, masks_count: int, said: int) -> Iterator[tuple[str, str, str, str]]:
    """The stages that see tables alone, at the row counts of the full release."""
    size = f"{images:,} images, {masks_count:,} masks, {said:,} conversations"
    for name, prepare, work in (
        ("plan", release_rows.write_download, release_rows.plan_download),
        ("tables", release_rows.write_kept, release_rows.join_kept),
    ):
        folder = scratch / name
        prepare(folder, images, masks_count, said)
        seconds, most = measured(work, folder, SETTINGS)
        yield f"{name}, {size}", f"{seconds:.0f} s, {most:.0f} MiB", "", "(bar 4096 MiB)"


def main(
    counts: Annotated[list[int] | None, typer.Option(help="Images of the trees, smallest first.")] = None,
    smallest: Annotated[int, typer.Option(help="Pixels of a side at least.")] = 256,
    largest: Annotated[int, typer.Option(help="Pixels of a side at most.")] = 1024,
    tries: Annotated[int, typer.Option(help="Samples that are looked at.")] = 500,
    rows: Annotated[tuple[int, int, int], typer.Option(help="Images, masks and conversations of the tables.")] = (
        4_600_000,
        20_000_000,
        310_000,
    ),
    scratch: Annotated[Path | None, typer.Option(help="Where to work; what is written there goes again.")] = None,
    kept: Annotated[Path | None, typer.Option("--raw", help="The largest tree, which stays; made where it is not there.")] = None,
) -> None:
    """Print each measurement beside its baseline and its bar."""
    environment.settle()
    counts = counts or [10_000, 30_000, 100_000]
    lines = []
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=scratch) as place:
        folder = Path(place)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        whole = kept or folder / "raw"
        if not (whole / raw.INDEX).exists():  # written after all pixels
            tree.write(whole, counts[-1], smallest, largest)
        out = folder / "out"
        for found in (packing(whole, folder, counts), access(whole, out, tries), validation(out), stages(folder, *rows)):
            for line in found:
                lines.append(line)
                sys.stderr.write(json.dumps(line) + "\n")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    typer.echo(f"{os.cpu_count()} cores, load {load} at the end\n\n| what | found | beside | share |\n| --- | --- | --- | --- |")
    for line in lines:
        typer.echo(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    typer.run(main)
