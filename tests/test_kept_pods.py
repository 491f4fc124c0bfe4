"""A pod that takes the place of one that was stopped, or is gone, goes on from the checkpoint that one had kept."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest
import s3
from test_nodes import MACHINES
from test_pod import Cell, cell, recipe  # noqa: F401 (a fixture)

from conftest import NOWHERE, ROOT, wait_until
from unimed import hashes
from unimed.store import Store

pytest_plugins = ["s3"]

COUNTS = """    made.mkdir()
    import json, time
    from unimed import job
    place = job.next_checkpoints()
    begun = [int(path.name[5:]) for path in sorted(place.glob("step-????????"))]
    for step in range(begun[-1] + 1 if begun else 0, 40):
        partial = place / f"step-{step:08d}.partial"
        partial.mkdir(parents=True)
        (partial / "numbers.json").write_text(json.dumps(step))
        partial.rename(place / f"step-{step:08d}")
        with Path(os.environ["STEPS"]).open("a") as file:
            file.write(f"{step}\\n")
        time.sleep(0.3)
"""


def of_train_job(cell: Cell) -> list[str]:  # noqa: F811
    """The command of a TrainJob's machine that runs the stage of the cell."""
    Store(cell.order["store"]).push(cell.root / "raw")
    words = {"--order": json.dumps(cell.order | {"train_job": MACHINES}), "--run": "run-7", "--params": cell.params}
    inputs = json.dumps({"data/raw": hashes.dvc_hash(cell.root / "raw")})
    command = [*(word for pair in words.items() for word in pair), "--inputs", inputs, "--", "python", "-m", "components.first"]
    return ["python", "-m", "pipelines.pod", *command, "--task", "one", "--raw", "data/raw", "--made", "models/first"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("command", "share"), [(Cell.command, "1"), (of_train_job, "2x1-0")], ids=["single", "of a TrainJob"])
def test_a_pod_goes_on_from_what_the_one_before_it_had_kept(
    cell: Cell,  # noqa: F811
    service: s3.Service,
    how: signal.Signals,
    command: Callable[[Cell], list[str]],
    share: str,
):
    component = cell.project.root / "components/first.py"
    component.write_text(component.read_text().replace("    made.mkdir()\n", COUNTS))
    cell.order |= {"store": service.url, "recipe": recipe(cell.project, cell.params, cell.order["sources"])}
    steps = cell.root / "steps"
    words = command(cell)
    known = {"MLFLOW_TRACKING_URI": NOWHERE, "STEPS": str(steps), "PET_NODE_RANK": "0", "MASTER_PORT": "0"}
    environ = os.environ | known | {"PYTHONPATH": f"{cell.project.root}{os.pathsep}{ROOT / 'src'}"}
    pod = subprocess.Popen([sys.executable, *words[1:]], cwd=cell.project.root, env=environ)
    wait_until(lambda: any(name.endswith("numbers.json") for name in service.names()))
    assert all(f"-{share}/" in name for name in service.names() if name.endswith("numbers.json"))
    if how == signal.SIGTERM:
        pod.send_signal(how)
    else:
        for process in [psutil.Process(pod.pid), *psutil.Process(pod.pid).children(recursive=True)]:  # as a node that is gone
            process.kill()
    assert pod.wait(60)
    first = [int(step) for step in steps.read_text().split()]
    assert first == list(range(len(first)))
    steps.unlink()
    done = cell.project.run(*words, **known)
    assert done.returncode == 0, done.stderr
    assert "an earlier pod left the checkpoint s3://" in done.stderr
    second = [int(step) for step in steps.read_text().split()]
    assert second == list(range(second[0], 40))
    assert second[0] == len(first) if how == signal.SIGTERM else 0 < second[0] <= len(first)
    record = Store(service.url).record("first", cell.order["recipe"])
    assert record is not None and Store(service.url).has(record["lock"]["outs"][0]["md5"])
    assert not [name for name in service.names() if "checkpoints/" in name], "the stage has ended well"
