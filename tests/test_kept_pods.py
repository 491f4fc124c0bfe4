"""A pod that takes the place of one that was stopped, or is gone, goes on from the checkpoint that one had kept."""

import os
import signal
import subprocess
import sys

import pytest
import s3
from test_pod import Cell, cell, recipe  # noqa: F401 (a fixture)

from conftest import NOWHERE, ROOT, wait_until

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


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_pod_goes_on_from_what_the_one_before_it_had_kept(cell: Cell, service: s3.Service, how: signal.Signals):  # noqa: F811
    component = cell.project.root / "components/first.py"
    component.write_text(component.read_text().replace("    made.mkdir()\n", COUNTS))
    cell.order |= {"store": service.url, "recipe": recipe(cell.project, cell.params, cell.order["sources"])}
    steps = cell.root / "steps"
    known = {"PYTHONPATH": f"{cell.project.root}{os.pathsep}{ROOT / 'src'}", "MLFLOW_TRACKING_URI": NOWHERE, "STEPS": str(steps)}
    pod = subprocess.Popen([sys.executable, *cell.command()[1:]], cwd=cell.project.root, env=os.environ | known, start_new_session=True)
    wait_until(lambda: any(name.endswith("numbers.json") for name in service.names()))
    if how == signal.SIGTERM:
        pod.send_signal(how)
    else:
        os.killpg(pod.pid, how)  # as a node that is gone
    assert pod.wait(60)
    first = [int(step) for step in steps.read_text().split()]
    assert first == list(range(len(first)))
    steps.unlink()
    done = cell.run(STEPS=str(steps))
    assert done.returncode == 0, done.stderr
    assert "an earlier pod left the checkpoint s3://" in done.stderr
    second = [int(step) for step in steps.read_text().split()]
    assert second == list(range(second[0], 40))
    assert second[0] == len(first) if how == signal.SIGTERM else 0 < second[0] <= len(first)
    assert (cell.root / "made").exists()
    assert not [name for name in service.names() if "checkpoints/" in name], "the stage has ended well"
