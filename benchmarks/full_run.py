"""All five stages of presets/full.yaml on one GPU, one after the other, from random checkpoints and phantoms to an answer and a mask.

python -m benchmarks.full_run [--folder DIR] [--steps 4] [--cases 24]. On a CPU everything is tiny. Needs no MLflow, DVC or Great
Expectations: data are not validated. Prints what each stage took, and how near it came to what the card can compute. Called again with the
folder of a run that was interrupted, it goes on after the stages that had ended.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import originals, taken
from benchmarks.stage import DECLARED, ROOT, Marks
from unimed import answering, environment, hashes, outputs, predict
from unimed.data import phantom_files
from unimed.model.assemble import Assembled

GPU = torch.cuda.is_available()
SLICES = 2
"""Images of each made-up patient."""

DATA = ("ingest", "subset_alignment", "subset_vqa", "subset_grounding", "subset_reasoning")
MODELS = ("foundation", "align", "vqa_expert", "grounding_expert", "moe_router", "grpo")
BATCH = {"align": 2, "vqa_expert": 2, "grounding_expert": 2, "moe_router": 2, "cold_start": 2, "grpo": 1}
"""Rows of a step, prompts in `grpo`: few, so that a step takes seconds. How many go through the model at once is the preset's."""

TINY_ROWS = {"row_tokens": 640, "compile": False}
"""Of every training on a CPU."""

NOWHERE = "http://127.0.0.1:9"
"""An address where no MLflow answers, so that stages keep their metrics in files alone."""

WORDS = 16
"""Of an answer at most; random weights seldom end one."""

QUESTION, PROMPT = "Is there a nodule in this image?", "Please segment the liver in this image."


def main(folder: Path, steps: int, cases: int) -> None:
    """Run all stages that have not ended in this folder and print the tables."""
    preset = yaml.safe_load((ROOT / "presets/full.yaml").read_text())
    if not (folder / "params.yaml").exists():
        prepare(folder, preset, steps, cases)
    numbers = yaml.safe_load((folder / "params.yaml").read_text())
    if (begun := numbers["align"]["max_steps"]) != steps:
        raise SystemExit(f"{folder}: expected --steps {begun}, with which this run began, found {steps}")
    ran = {name: once(name, folder) for name in (*DATA, *MODELS)}
    with told("loading, answering, pointing"):
        said = apart(answer, folder / "models/reasoner", sorted((folder / "data/raw/SAMed2Dv1/images").glob("*.png"))[0])
    write("\n".join([*said, "", *taken.parts(folder, ran), ""]))
    write("\n".join(taken.table(folder, ran, preset, numbers)))


def prepare(folder: Path, preset: Mapping[str, Any], steps: int, cases: int) -> None:
    """Write phantoms, checkpoints, and last the numbers of all stages."""
    places = {name: folder / pinned["path"] for name, pinned in preset["foundation"]["from"].items()}
    with told("phantoms"):
        phantom_files.write(folder / "data/raw", cases=cases, slices=SLICES, seed=0)
    with told("checkpoints"):
        texts = [file.read_text() for file in sorted((folder / "data/raw").rglob("*.json"))]
        apart(originals.write, places, originals.FULL if GPU else originals.TINY, texts, "cuda" if GPU else "cpu")
        for place in places.values():
            outputs.flush(place)  # else the first stage would wait for the disk to take them
    with told("their md5, which the preset pins"):
        numbers = cut(preset, steps, hashes.dvc_hashes(places))
    (folder / "exclusions.csv").write_bytes((ROOT / "exclusions.csv").read_bytes())
    put(folder / "params.yaml", yaml.safe_dump(numbers, sort_keys=False))


def put(file: Path, text: str) -> None:
    """Write a file that is whole or not there."""
    with outputs.complete({"file": file}) as partial:
        partial["file"].write_text(text)


def write(text: str) -> None:
    """A line for people."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def told(label: str) -> Iterator[None]:
    """Says how long the block took."""
    began = time.perf_counter()
    yield
    write(f"{label}: {time.perf_counter() - began:.1f} s")


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives, from a process of its own: what it held on the GPU is free afterwards."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def cut(preset: Mapping[str, Any], steps: int, pins: Mapping[str, str]) -> dict[str, Any]:
    """The preset with few steps of small batches on checkpoints with these hashes; all else as it stands, on a CPU with tiny shapes."""
    numbers = dict(preset)
    few = {"max_steps": steps, "warmup_steps": 1}
    for name in taken.TRAINED:
        numbers[name] = preset[name] | few | {"batch_size": BATCH[name]}
    numbers["grpo"]["cold_start"] = preset["grpo"]["cold_start"] | few | {"batch_size": BATCH["cold_start"]}
    numbers["foundation"] = {"from": {name: pinned | {"md5": pins[name]} for name, pinned in preset["foundation"]["from"].items()}}
    if not GPU:
        for training in (*(numbers[name] for name in taken.MIXES), numbers["grpo"]["cold_start"]):
            training |= TINY_ROWS
        tiny = originals.VLM.model_dump(mode="json", include=originals.VLM.model_fields_set)
        numbers["vlm"] = preset["vlm"] | tiny
        numbers["grpo"] |= {"max_completion_length": 8, "group_size": 2}
    return numbers


def once(name: str, folder: Path) -> taken.Ran:
    """What a stage took, now or when it ended in this folder before."""
    file = folder / f"{name}.json"
    if not file.exists():
        put(file, run(name, folder).told())
    return taken.Ran.read(DECLARED[name], file)


def run(name: str, folder: Path) -> taken.Ran:
    """A stage in a process of its own. Raises CalledProcessError when it fails."""
    began, file = time.time(), folder / f"{name}.marks.json"
    libraries = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    given = os.environ | {"PYTHONPATH": libraries, "MLFLOW_TRACKING_URI": NOWHERE}
    with told(name):
        subprocess.run([sys.executable, "-m", "benchmarks.stage", name, file.resolve()], cwd=folder, env=given, check=True)
    return taken.Ran(DECLARED[name], began, time.time(), Marks(**json.loads(file.read_text())))


def answer(model: Path, image: Path) -> list[str]:
    """What the model answers and points at, as `unimed predict` would ask it, told in sentences."""
    began = time.perf_counter()
    made, shown = predict.load(model), predict.open_image(image)
    loaded = time.perf_counter()
    [said] = answering.answer(made, [answering.Question(shown, QUESTION)], WORDS)
    answered = time.perf_counter()
    prompt = answering.Question(shown, PROMPT)
    point_first(made, prompt)
    [pointed] = answering.answer(made, [prompt], WORDS)
    ended = time.perf_counter()
    sizes = sorted({tuple(mask["size"]) for mask in pointed.masks})
    return [
        f"Loaded on {made.model.device.type} in {loaded - began:.1f} s.",
        f"Answer in {answered - loaded:.1f} s: {said.answer!r}",
        f"Masks in {ended - answered:.1f} s: {len(pointed.masks)} of {sizes} for an image of {(shown.height, shown.width)}",
    ]


@torch.no_grad()
def point_first(made: Assembled, question: answering.Question) -> None:
    """Turn `<SEG>`'s row of the output layer to the state after the prompt, since random weights would never say it."""
    inputs = {name: value.to(made.model.device) for name, value in answering.read(made, question, WORDS).inputs.items()}
    state = made.model.model(**inputs, seg_input=made.model.grounding.seg_input).last_hidden_state[0, -1]
    made.model.grounding.seg_output.copy_(state)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="empty, with 60 GB to spare, or of an interrupted run; a temporary one when left out")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of each training, at least 2")
    parser.add_argument("--cases", type=int, default=24)
    given = parser.parse_args()
    if given.steps < 2:
        parser.error(f"--steps {given.steps}: expected at least 2, the first is not counted")
    if given.folder and given.folder.exists() and any(given.folder.iterdir()) and not (given.folder / "params.yaml").exists():
        parser.error(f"--folder {given.folder}: expected an empty folder, that of an earlier run, or none, found other files in it")
    environment.settle()
    with tempfile.TemporaryDirectory() as aside:
        main(given.folder or Path(aside), given.steps, given.cases)
