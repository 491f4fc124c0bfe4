"""What packing is worth to DVC: add, push and checkout of a subset as shards and tables beside the same subset as single files.

python -m benchmarks.versions [--images 20000] [--masks-per-image 4] [--pixels 256] [--rounds 3]

Both are pushed to a remote in a local folder, so that the network says nothing; caches are of the run's own and thrown away.
"""

import argparse
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unimed.data import masks, shards, tables
from unimed.data.fingerprints import fingerprint

STEPS = ("add", "push", "checkout")
SHARD_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Slice:
    """An image as bytes, with its name."""

    sample_id: str
    content: bytes


def slices(count: int, pixels: int) -> Iterator[Slice]:
    """Grey slices that compress about as well as real ones; no two are alike."""
    y, x = np.mgrid[:pixels, :pixels]
    for number in range(count):
        rng = np.random.default_rng(number)
        body = np.hypot(y - pixels / 2, x - pixels / 2) < pixels * rng.uniform(0.3, 0.45)
        grey = np.where(body, 120 + 60 * np.sin(x / rng.uniform(8, 20)) * np.cos(y / rng.uniform(8, 20)), 8) + rng.normal(0, 3, y.shape)
        yield Slice(f"ct_00--Bench--case_{number // 50:05d}--z_{number % 50:04d}", _png(np.clip(grey, 0, 255).astype(np.uint8)))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def write(root: Path, images: int, each: int, pixels: int) -> None:
    """Write the same images and masks twice: `packed` as shards and tables, `unpacked` as a download keeps them."""
    for folder in ("packed/shards", "packed/tables", "unpacked/images", "unpacked/masks"):
        (root / folder).mkdir(parents=True)
    samples, rows = [], []
    for item, place in shards.write(root / "packed/shards", slices(images, pixels), SHARD_BYTES):
        (root / f"unpacked/images/{item.sample_id}.png").write_bytes(item.content)
        prefix, dataset, case, position = item.sample_id.split("--")
        about = {"modality": prefix.partition("_")[0], "dataset": dataset, "case": case, "slice": position, "split": "train"}
        known = {"licence": "CC0-1.0", "sha256": "0" * 64, "fingerprint": fingerprint(Image.open(io.BytesIO(item.content)))}
        samples.append({"sample_id": item.sample_id, **about, **known, "height": pixels, "width": pixels, **asdict(place)})
        for number in range(each):
            mask = _mask(len(samples) * each + number, pixels)
            mask_id = f"{item.sample_id}--{number:04d}_000"
            (root / f"unpacked/masks/{mask_id}.png").write_bytes(_png(mask.astype(np.uint8) * 255))
            size = {"height": pixels, "width": pixels, "area": int(mask.sum())}
            ids = {"mask_id": mask_id, "sample_id": item.sample_id, "class_name": f"class {number}", "class_id": number, "instance": 0}
            rows.append({**ids, **size, "rle": masks.encode(mask)})
    tables.write(tables.frame(samples, tables.SAMPLES), tables.SAMPLES, root / "packed/tables/samples.parquet", by=("sample_id",))
    tables.write(tables.frame(rows, tables.MASKS), tables.MASKS, root / "packed/tables/masks.parquet", by=("mask_id",))


def _mask(number: int, pixels: int) -> masks.Pixels:
    rng = np.random.default_rng([number, 1])
    y, x = np.mgrid[:pixels, :pixels]
    return np.hypot(y - rng.uniform(0, pixels), (x - rng.uniform(0, pixels)) / 2) < pixels / 6


def seconds(root: Path, name: str) -> dict[str, float]:
    """How long each step takes for a folder of `root`, in a fresh DVC project with nothing cached."""
    project = root / f"project-{name}"
    shutil.copytree(root / name, project / "data")
    _dvc(project, "init", "--no-scm", "-q")
    _dvc(project, "config", "core.analytics", "false")
    _dvc(project, "remote", "add", "-q", "-d", "local", str(root / f"remote-{name}"))
    took = {"add": _dvc(project, "add", "-q", "data"), "push": _dvc(project, "push", "-q")}
    shutil.rmtree(project / "data")
    took["checkout"] = _dvc(project, "checkout", "-q")
    shutil.rmtree(project)
    shutil.rmtree(root / f"remote-{name}")
    return took


def _dvc(project: Path, *words: str) -> float:
    started = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("dvc"), *words], cwd=project, check=True, capture_output=True)
    return time.perf_counter() - started


def measure(images: int, each: int, pixels: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each step by form, taken in turns, and the number of files."""
    with tempfile.TemporaryDirectory(prefix="unimed-versions-") as folder:
        root = Path(folder)
        write(root, images, each, pixels)
        taken = {name: [] for name in ("packed", "unpacked")}
        for _ in range(rounds):
            for name, found in taken.items():
                found.append(seconds(root, name))
        files = {name: sum(path.is_file() for path in (root / name).rglob("*")) for name in taken}
    return {
        name: {"files": files[name]} | {step: statistics.median(one[step] for one in found) for step in STEPS}
        for name, found in taken.items()
    }


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("images", 20_000), ("masks-per-image", 4), ("pixels", 256), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    found = measure(asked.images, asked.masks_per_image, asked.pixels, asked.rounds)
    lines = ["| | files | " + " | ".join(f"{step}, s" for step in STEPS) + " |", "|---|--:|--:|--:|--:|"]
    for name, row in found.items():
        lines.append(f"| {name} | {row['files']:,} | " + " | ".join(f"{row[step]:.2f}" for step in STEPS) + " |")
    faster = [found["unpacked"][step] / found["packed"][step] for step in STEPS]
    lines.append("| times faster | | " + " | ".join(f"{ratio:.1f}" for ratio in faster) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
