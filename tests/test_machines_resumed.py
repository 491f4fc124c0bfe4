"""Processes on several machines, each with a disk of its own or all with one, stop together and go on to the bits of a run left alone."""

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from striking import reached
from test_several_resumed import PROGRAM

from conftest import ROOT
from unimed.errors import STOPPED

pytestmark = pytest.mark.slow


def run(*folders: Path, step: int = 0, number: int = 0) -> list[tuple[int, str]]:
    """Train twice, 4 and 8 steps, a process on each of two machines that work in these folders; at that step the second gets a signal."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT / "src", ROOT))), "OMP_NUM_THREADS": "1"}
    machines = []
    for place, folder in enumerate(folders):
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "program.py").write_text("import logging\nlogging.basicConfig(level=logging.INFO)\n" + PROGRAM)
        launcher = ["-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={place}", "--nproc-per-node=1", f"--master-port={port}"]
        command = [sys.executable, *launcher, "--master-addr=127.0.0.1", "program.py", str(step), str(number)]
        machines.append(subprocess.Popen(command, cwd=folder, env=known, stderr=subprocess.PIPE, text=True))
    said = [machine.communicate()[1] for machine in machines]
    return [(machine.returncode, text) for machine, text in zip(machines, said, strict=True)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of two machines whose run was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    folders = folder / "first", folder / "second"
    assert_done(run(*folders))
    return folders


def assert_done(ended: list[tuple[int, str]]) -> None:
    for code, said in ended:
        assert code == 0, said[-4000:]


@pytest.mark.parametrize("disks", [("first", "second"), ("common", "common")], ids=["own", "common"])
def test_machines_told_to_stop_go_on_from_their_own_checkpoints(tmp_path: Path, whole: tuple[Path, Path], disks: tuple[str, str]):
    folders = [tmp_path / disk for disk in disks]
    stopped = run(*folders, step=2, number=15)
    assert [(folder / f"{rank}.code").read_text() for rank, folder in enumerate(folders)] == [str(STOPPED)] * 2, stopped
    places = [folder / f"runs/tiny-key/checkpoints/1-{place}" for place, folder in enumerate(folders)]
    [last] = {max(step.name for step in place.glob("step-*")) for place in places}
    for rank, place in enumerate(places):
        assert [file.name for file in (place / last).glob("*.safetensors")] == [f"process-{rank:05d}.safetensors"]
    ended = run(*folders)
    assert_done(ended)
    assert all(f"tiny goes on from runs/tiny-key/checkpoints/1-{rank}/{last}" in said for rank, (_, said) in enumerate(ended)), ended
    assert not any(map(reached, folders)), "none is left"
    for stage in (0, 1):
        for rank, (folder, other) in enumerate(zip(folders, whole, strict=True)):
            left, right = (load_file(at / f"{stage}-{rank}.safetensors") for at in (folder, other))
            torch.testing.assert_close(left, right, atol=0, rtol=0)
    assert (folders[0] / "0-0.json").read_text() == (whole[0] / "0-0.json").read_text()


def test_a_machine_whose_checkpoint_is_torn_takes_all_back_to_the_one_before(tmp_path: Path, whole: tuple[Path, Path]):
    folders = tmp_path / "first", tmp_path / "second"
    run(*folders, step=3, number=15)
    names = sorted(step.name for step in folders[1].glob("runs/tiny-key/checkpoints/1-1/step-*"))
    torn = folders[1] / f"runs/tiny-key/checkpoints/1-1/{names[-1]}/process-00001.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    ended = run(*folders)
    assert_done(ended)
    assert all(f"/{names[-2]}\n" in said for _, said in ended), ended
    assert "checkpoint left out: " in ended[1][1]
    torch.testing.assert_close(load_file(folders[0] / "0-0.safetensors"), load_file(whole[0] / "0-0.safetensors"), atol=0, rtol=0)
