"""A stage's checkpoints in the store: the newest of each training, there or not there, and never in the way of the stage."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import s3
from test_pod import Cell, cell, recipe  # noqa: F401 (a fixture)

from conftest import NOWHERE, ROOT
from pipelines import kept
from pipelines.kept import Kept
from unimed.objects import PART
from unimed.store import Store

pytest_plugins = ["s3"]

PLACE = "team/store/checkpoints/align-0123abcd"


@pytest.fixture
def made(service: s3.Service, tmp_path: Path) -> Kept:
    """A stage's checkpoints, of which there are none yet."""
    return another(service, tmp_path / "first")


def another(service: s3.Service, folder: Path) -> Kept:
    return Kept(Store(service.url), "align", "0123abcd", folder)


def write(made: Kept, training: int, step: int, text: str = "weights") -> Path:
    place = made.folder / f"{training}/step-{step:08d}"
    place.mkdir(parents=True)
    (place / "process-00000.safetensors").write_text(f"{text} {training} {step}")
    (place / "numbers.json").write_text("{}")
    return place


def under(service: s3.Service) -> list[str]:
    return [name.removeprefix(PLACE) for name in service.names()]


def test_another_pod_finds_the_newest_of_each_training(made: Kept, service: s3.Service, tmp_path: Path):
    for training, step in ((1, 5), (1, 10), (2, 3)):
        write(made, training, step)
    (made.folder / "2/step-00000004.partial").mkdir()
    made.keep()
    other = another(service, tmp_path / "second")
    other.fetch()
    names = {"1/step-00000010", "2/step-00000003"}
    assert {path.relative_to(other.folder).as_posix() for path in other.folder.glob("*/*")} == names
    for name in names:
        assert s3.contents(other.folder / name) == s3.contents(made.folder / name)


def test_what_a_newer_one_takes_the_place_of_is_deleted_and_nothing_is_sent_twice(made: Kept, service: s3.Service):
    write(made, 1, 5)
    write(made, 2, 1)
    made.keep()
    shutil.rmtree(made.folder / "2/step-00000001")
    write(made, 2, 2)
    service.requests.clear()
    made.keep()
    files = ("numbers.json", "process-00000.safetensors")
    assert under(service) == [".json", *(f"/{step}/{name}" for step in ("1/step-00000005", "2/step-00000002") for name in files)]
    assert len(service.sent("PUT")) == 3
    service.requests.clear()
    made.keep()
    assert not service.requests
    made.drop()
    assert under(service) == []


def test_a_large_one_goes_up_in_parts(made: Kept, service: s3.Service, tmp_path: Path):
    file = write(made, 1, 5) / "process-00000.safetensors"
    file.write_bytes(os.urandom(2 * PART + 1))
    made.keep()
    other = another(service, tmp_path / "second")
    other.fetch()
    assert (other.folder / "1/step-00000005" / file.name).read_bytes() == file.read_bytes()


def test_the_last_one_is_kept_when_the_stage_ends(made: Kept, service: s3.Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept, "EVERY_SECONDS", 0.05)

    def stage() -> None:
        write(made, 1, 5)
        until = time.monotonic() + 20
        while not made.held and time.monotonic() < until:
            time.sleep(0.02)
        assert made.held, "kept while the stage ran"
        write(made, 1, 6)
        sys.exit(75)

    with pytest.raises(SystemExit), made.following():
        stage()
    assert {name.rpartition("/")[0] for name in made.held} == {"1/step-00000006"}


def test_the_checkpoints_of_another_stage_or_recipe_are_not_its_own(made: Kept, service: s3.Service, tmp_path: Path):
    write(made, 1, 5)
    made.keep()
    for stage, key in (("align", "ffff"), ("grpo", "0123abcd")):
        other = Kept(Store(service.url), stage, key, tmp_path / key)
        other.fetch()
        assert not other.folder.exists()


def test_a_store_that_refuses_costs_the_checkpoint_alone(made: Kept, service: s3.Service, caplog: pytest.LogCaptureFixture):
    service.faults.append(s3.Fault("PUT", "", "answer", times=10**6, status=403, code="AccessDenied"))
    write(made, 1, 5)
    with made.following():
        pass
    made.keep()
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("checkpoint not kept: s3://unimed-store")
    service.faults.clear()
    write(made, 1, 6)
    made.keep()
    assert under(service) == [".json", "/1/step-00000006/numbers.json", "/1/step-00000006/process-00000.safetensors"]


def test_what_came_through_of_one_that_was_not_kept_does_not_stay(made: Kept, service: s3.Service):
    service.faults.append(s3.Fault("PUT", "align-0123abcd.json", "answer", times=10**6, status=403, code="AccessDenied"))
    write(made, 1, 5)
    made.keep()
    assert len(under(service)) == 2
    service.faults.clear()
    write(made, 1, 6)
    made.keep()
    assert {name.split("/")[2] for name in under(service) if name != ".json"} == {"step-00000006"}
    made.drop()
    assert under(service) == []


def test_one_written_anew_with_other_bytes_is_sent_anew(made: Kept, service: s3.Service, tmp_path: Path):
    write(made, 1, 5)
    made.keep()
    later = another(service, tmp_path / "second")
    later.fetch()
    shutil.rmtree(later.folder)
    later.tried = set()  # as where the stage could not go on from it
    place = write(later, 1, 5, "other weights")
    later.keep()
    third = another(service, tmp_path / "third")
    third.fetch()
    assert s3.contents(third.folder / "1/step-00000005") == s3.contents(place)


def test_one_that_goes_while_it_is_sent_costs_itself_alone(made: Kept, service: s3.Service, caplog: pytest.LogCaptureFixture):
    service.faults.append(s3.Fault("PUT", "", "stall"))
    place = write(made, 1, 5)
    keeping = threading.Thread(target=made.keep)
    keeping.start()
    assert service.stalled.wait(20)
    shutil.rmtree(place)
    service.released.set()
    keeping.join(60)
    assert "checkpoint not kept: " in caplog.text
    assert ".json" not in under(service), "none that is not whole is listed"


def test_one_of_which_a_file_is_missing_or_another_is_named_in_a_warning(
    made: Kept, service: s3.Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    write(made, 1, 5)
    made.keep()
    for body in (None, b"torn"):
        name = f"{PLACE}/1/step-00000005/process-00000.safetensors"
        if body is None:
            service.client.delete_object(Bucket=s3.BUCKET, Key=name)
        else:
            service.client.put_object(Bucket=s3.BUCKET, Key=name, Body=body)
        caplog.clear()
        other = another(service, tmp_path / f"other {body}")
        other.fetch()
        assert "checkpoint left out: s3://unimed-store/team/store/checkpoints/align-0123abcd/1/step-00000005" in caplog.text
        assert not list(other.folder.glob("*/*"))


ZEROS = "0" * 32
WRONG = ["[1]", "{", f'{{"../../etc/passwd": "{ZEROS}"}}', f'{{"1/step-00000001/../../x": "{ZEROS}"}}', '{"1/step-00000001/a": "x"}']


@pytest.mark.parametrize("text", WRONG)
def test_a_listing_that_names_other_places_is_not_followed(
    service: s3.Service, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
):
    service.client.put_object(Bucket=s3.BUCKET, Key=f"{PLACE}.json", Body=text.encode())
    other = another(service, tmp_path / "second")
    other.fetch()
    assert "checkpoint left out: s3://unimed-store/team/store/checkpoints/align-0123abcd.json: expected" in caplog.text
    assert not other.folder.exists()


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
    until = time.monotonic() + 60
    while not any(name.endswith("numbers.json") for name in service.names()) and time.monotonic() < until:
        time.sleep(0.05)
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
    assert "an earlier pod left the checkpoint 1/step-" in done.stderr
    second = [int(step) for step in steps.read_text().split()]
    assert second == list(range(second[0], 40))
    assert second[0] == len(first) if how == signal.SIGTERM else 0 < second[0] <= len(first)
    assert (cell.root / "made").exists()
    assert not [name for name in service.names() if "checkpoints/" in name], "the stage has ended well"
