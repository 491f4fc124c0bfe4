"""What goes wrong in one of two processes that train together: both name and count it, and both make the step of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from failing import same
from safetensors.torch import load_file
from test_processes import TWO

from conftest import ROOT

pytestmark = pytest.mark.slow
PROGRAM = """
import json, os, sys
from pathlib import Path

import failing, tiny
from safetensors.torch import save_file
from unimed.config import MaskLoss
from unimed.errors import InputError
from unimed.train.draws import Draws

rank = int(os.environ.get("RANK", "-1"))


def sample(mine, mishap, place):
    # Answers of one length: the mean of two processes' means is then the mean over all words.
    if (mishap, place, rank) == ("one of two", 2, -1):
        place = 3  # which then counts as much as the other process's two
    text = f"Is there a nodule {place}{failing.POISON if (mishap, place) == ('poison', 2) else ''}?"
    turns = [tiny.turn(text, ("yes", "no")[place % 2])]
    if mishap == "masks" and place >= 2:
        turns.append(tiny.turn("Segment it.", "It is <SEG>.", targets=[tiny.box(4, 3, 12, 12)]))
    made = tiny.sample(mine, *turns, seed=place)
    cut = {"one of two": [2], "both of two": [2, 3], "all": range(4)}.get(mishap, [])
    return failing.cut_short(made) if place in cut else made


def infinite(module, args, outputs):
    outputs.loss = outputs.loss + float("inf")  # whose gradient is as before
    return outputs


def run(mine, mishap, failures, steps):
    # The second process has the third and fourth sample of the first step, whatever their numbers.
    numbered = [tiny.sample(mine / "drawn", tiny.turn("?", "no"), seed=number) for number in range(4)]
    order = [item.sample_id for item in map(Draws(tiny.samples(*numbered), 4, 0).__getitem__, range(4))]
    samples = [sample(mine, mishap, order.index(one.sample_id)) for one in numbered]
    model = failing.model(*(["grounding.text_hidden_fcs"] if mishap == "masks" else []))
    if mishap == "memory" and rank != 0:
        failing.refuse_more_than(model, 1)
    if mishap == "infinite" and rank != 0:
        model.register_forward_hook(infinite)
    loss = MaskLoss(pixel_weight=2.0, dice_weight=0.5) if mishap == "masks" else None
    try:
        history = failing.fit(model, samples, failures, loss, batch_size=4, max_steps=steps, warmup_steps=0, learning_rate=0.01)
        (mine / "history.json").write_text(json.dumps(history, allow_nan=False))
    except InputError as error:
        (mine / "refused.txt").write_text(str(error))
    save_file({name: value for name, value in model.named_parameters() if value.requires_grad}, mine / "weights.safetensors")


for name, case in json.loads(sys.argv[1]).items():
    run(Path.cwd() / name / str(rank), *case)
"""
READ_ON = {"unreadable": "skip", "most_skipped": 8}
HALVE = {"out_of_memory": "halve"}
CASES = {
    "one of two": ("one of two", READ_ON, 1),
    "both of two": ("both of two", READ_ON, 1),
    "all": ("all", READ_ON | {"not_finite": "skip"}, 2),
    "memory": ("memory", HALVE, 2),
    "poison": ("poison", {"not_finite": "skip", "most_skipped": 2}, 2),
    "infinite": ("infinite", {"not_finite": "skip", "most_skipped": 2}, 2),
    "too many": ("both of two", READ_ON | {"most_skipped": 1}, 1),
    "masks": ("masks", HALVE, 1),
    "masks, stop": ("masks", {}, 1),
}
"""By name: what happens to the third of four samples, or to some, what is done about it, and the steps."""


def run(folder: Path, *launcher: str) -> str:
    """Train in each case; gives what was said."""
    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT / "src", ROOT))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, "program.py", json.dumps(CASES)]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where `one` process and `two` have trained, and what the two said."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder / "one")
    return folder, run(folder / "two", *TWO)


@pytest.mark.parametrize(
    ("case", "counts", "words"),
    [
        ("one of two", {"unreadable": [1]}, "step 0 goes on without image2 of shard-000000.tar ("),
        ("both of two", {"unreadable": [2]}, "goes on without image2 of shard-000000.tar ("),
        ("all", {"unreadable": [4, 8]}, "step 1 goes on without image"),
        ("memory", {"out_of_memory": [1, 2]}, "expected step 1 to fit into memory, found CUDA out of memory. Tried to allocate 2.00 GiB."),
        ("poison", {"not_finite": [1, 2]}, "expected a finite loss and gradient at step 1, found"),
        ("infinite", {"not_finite": [1, 2]}, "'another process': nan}"),
    ],
)
def test_what_happens_in_one_of_two_processes_leaves_both_with_the_weights_and_counts_of_one(trained, case, counts, words):
    folder, said = trained
    places = [folder / "one" / case / "-1", *(folder / "two" / case / rank for rank in "01")]
    one, *two = (load_file(place / "weights.safetensors") for place in places)
    history, *lines = (json.loads((place / "history.json").read_text()) for place in places)
    assert same(*two)
    torch.testing.assert_close(two[0], one, atol=1e-4, rtol=1e-4)
    for each in lines:
        assert {name: [line[name] for line in each] for name in counts} == counts
        assert [line.get("loss") for line in each] == pytest.approx([line.get("loss") for line in history], abs=2e-4)
    assert words in said


def test_both_end_where_all_that_was_skipped_in_either_is_too_much(trained):
    for rank in "01":
        sentence = (trained[0] / "two/too many" / rank / "refused.txt").read_text()
        assert sentence.startswith(
            "params.yaml: expected failures.most_skipped of unreadable to be at most 1, found 2: step 0 goes on without"
        )


def test_those_that_may_fail_each_for_itself_make_the_step_of_those_that_may_not(trained):
    """Only the second has masks: what they teach has a gradient there alone."""
    folder = trained[0] / "two"
    apart, as_one = (load_file(folder / case / "0/weights.safetensors") for case in ("masks", "masks, stop"))
    other = load_file(folder / "masks/1/weights.safetensors")
    assert same(apart, other)
    torch.testing.assert_close(apart, as_one, atol=1e-5, rtol=1e-4)
