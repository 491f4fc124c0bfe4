"""Several processes train as one: the same batches, the same loss."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny

from conftest import ROOT
from unimed.config import Optimisation
from unimed.errors import InputError
from unimed.train import together
from unimed.train.stage_trainer import StageTrainer

ZERO = {
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,  # torch's AdamW; DeepSpeed's own is compiled at run time
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_clipping": "auto",
}
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PROGRAM = """
import json, os, sys
from pathlib import Path
import tiny
from unimed.config import Optimisation
from unimed.model import assemble
from unimed.train import loop
from unimed.train.batch import Collator

out, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
mine = out / os.environ.get("RANK", "alone")
samples = [tiny.sample(mine, tiny.turn(f"Is there a nodule {seed}?", ("yes", "no")[seed % 2]), seed=seed) for seed in range(8)]
model = tiny.stirred()
trained = loop.train_only(model, assemble.ALIGNED)
settings = Optimisation(**{"batch_size": 4, "max_steps": 2, "learning_rate": 0.01, "warmup_steps": 0} | changes)
history = loop.fit(model, tiny.samples(*samples), Collator(tiny.processor()), settings, 0, "tiny")
moved = {name: float(value.sum()) for name, value in model.named_parameters() if name in trained}
(mine / "found.json").write_text(json.dumps([[entry["loss"] for entry in history], moved]))
"""


def trained(folder, *launcher, **changes):
    """Losses and moved parameters of each process of a run of two steps on batches of four answers of equal length."""
    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM)
    (folder / "zero.json").write_text(json.dumps(ZERO))
    paths = os.pathsep.join(map(str, (ROOT / "tests", ROOT / "src", ROOT)))
    known = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, *launcher, str(folder / "program.py"), str(folder), json.dumps(changes)]
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*/found.json"))]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its communication when it first starts, with g++")
def test_two_processes_under_zero_2_get_the_loss_and_the_weights_of_one(tmp_path):
    assert_equal(trained(tmp_path / "two", *TWO, deepspeed=str(tmp_path / "two/zero.json")), trained(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its communication when it first starts, with g++")
def test_what_trains_in_bfloat16_under_zero_2_is_handed_on_as_the_optimizer_has_it(tmp_path):
    """Steps of AdamW are of the learning rate's size at first: in bfloat16 a weight of 1 has no digits for 0.001."""
    two = trained(tmp_path / "two", *TWO, deepspeed=str(tmp_path / "two/zero.json"), dtype="bfloat16", learning_rate=0.001)
    [(_, alone)] = trained(tmp_path / "one", dtype="bfloat16", learning_rate=0.001)
    name = "model.encoder.fusions.0.norm.weight"  # all near one, each moved by two steps
    for _, moved in two:
        assert moved[name] == pytest.approx(alone[name], abs=2e-4)


@pytest.mark.slow
def test_two_processes_whose_parts_of_a_batch_go_in_portions_get_the_loss_and_the_weights_of_one(tmp_path):
    assert_equal(trained(tmp_path / "two", *TWO, samples_at_once=1), trained(tmp_path / "one"))


def assert_equal(found, alone):
    """Both processes are where one is, but for the order of sums; the log keeps four decimals."""
    [(losses, weights)] = alone
    assert len(found) == 2
    assert found[0][0] == pytest.approx(losses, abs=2e-4)
    for _, moved in found:
        assert moved == pytest.approx(weights, abs=1e-4)


def test_a_batch_that_processes_cannot_share_evenly_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    numbers = {"batch_size": 6, "max_steps": 1, "learning_rate": 0.01}
    assert together.per_process(Optimisation(**numbers)) == 2
    with pytest.raises(InputError, match=r"params.yaml: batch_size must be a multiple of the 3 processes of this run, is 4"):
        together.per_process(Optimisation(**numbers | {"batch_size": 4}))


def test_a_process_names_the_samples_of_a_step_and_those_that_did_not_fit_as_its_own(tmp_path):
    trainer = StageTrainer.__new__(StageTrainer)
    trainer.args = SimpleNamespace(world_size=3, per_device_train_batch_size=2)
    trainer.train_dataset = [tiny.sample(tmp_path, tiny.turn("?", "yes"), seed=seed) for seed in range(18)]
    # Steps take six, of which the second process has the third and the fourth.
    own = [[item.sample_id for item in trainer._items(step, rank=1)] for step in range(3)]
    assert own == [["image2", "image3"], ["image8", "image9"], ["image14", "image15"]]
    assert [trainer.named(step) for step in range(3)] == [[f"image{6 * step + number}" for number in range(6)] for step in range(3)]


def test_a_sample_of_noise_is_the_same_in_every_process(tmp_path):
    one, two = (tiny.sample(tmp_path / name, tiny.turn("?", "yes"), seed=3).load_image() for name in "ab")
    assert one.tobytes() == two.tobytes()
