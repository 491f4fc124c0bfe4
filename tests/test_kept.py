"""A stage's checkpoints in the store: the newest of each training, there or not there, and never in the way of the stage."""

import logging
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
import s3

from conftest import wait_until
from pipelines import kept
from pipelines.kept import Kept
from unimed.objects import PART
from unimed.store import Store

pytest_plugins = ["s3"]

PLACE = "team/store/checkpoints/align-0123abcd-1"


@pytest.fixture
def made(service: s3.Service, tmp_path: Path) -> Kept:
    """A stage's checkpoints, of which there are none yet."""
    return another(service, tmp_path / "first")


def another(service: s3.Service, folder: Path) -> Kept:
    return Kept(Store(service.url), "align", "0123abcd", "1", folder)


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
    service.requests.clear()
    other.keep()
    assert not service.requests, "what was fetched is there"


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
        wait_until(lambda: bool(made.held))
        write(made, 1, 6)
        sys.exit(75)

    with pytest.raises(SystemExit), made.following():
        stage()
    assert {name.rpartition("/")[0] for name in made.held} == {"1/step-00000006"}


def test_the_checkpoints_of_another_stage_or_recipe_or_number_of_processes_are_not_its_own(made: Kept, service: s3.Service, tmp_path: Path):
    write(made, 1, 5)
    made.keep()
    for stage, key, share in (
        ("align", "ffff", "1"),
        ("grpo", "0123abcd", "1"),
        ("align", "0123abcd", "2"),
        ("align", "0123abcd", "2x1-0"),
    ):
        other = Kept(Store(service.url), stage, key, share, tmp_path / "other")
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
    service.faults.append(s3.Fault("PUT", "align-0123abcd-1.json", "answer", times=10**6, status=403, code="AccessDenied"))
    write(made, 1, 5)
    made.keep()
    assert len(under(service)) == 2
    service.faults.clear()
    write(made, 1, 6)
    made.keep()
    assert {name.split("/")[2] for name in under(service) if name != ".json"} == {"step-00000006"}
    made.drop()
    assert under(service) == []


def test_until_a_new_one_is_listed_the_one_before_it_stays(made: Kept, service: s3.Service, tmp_path: Path):
    before = write(made, 1, 5)
    made.keep()
    service.faults.append(s3.Fault("PUT", "align-0123abcd-1.json", "answer", times=10**6, status=403, code="AccessDenied"))
    write(made, 1, 6)
    made.keep()
    other = another(service, tmp_path / "second")
    other.fetch()
    assert s3.contents(other.folder / "1/step-00000005") == s3.contents(before)


def test_what_could_not_be_deleted_is_deleted_with_the_next(made: Kept, service: s3.Service, caplog: pytest.LogCaptureFixture):
    write(made, 1, 5)
    made.keep()
    service.faults.append(s3.Fault("DELETE", "", "answer", times=10**6, status=403, code="AccessDenied"))
    write(made, 1, 6)
    made.keep()
    assert "an old checkpoint stays in the store for now: " in caplog.text and "not kept" not in caplog.text
    service.faults.clear()
    write(made, 1, 7)
    made.keep()
    assert {name.split("/")[2] for name in under(service) if name != ".json"} == {"step-00000007"}
    service.faults.append(s3.Fault("DELETE", "process", "answer", times=10**6, status=403, code="AccessDenied"))
    made.drop()
    service.faults.clear()
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


@pytest.mark.parametrize("gone", ["1/step-00000005", "."])
def test_one_that_goes_while_it_is_sent_is_told_unless_all_go_as_where_a_stage_has_ended(
    made: Kept, service: s3.Service, caplog: pytest.LogCaptureFixture, gone: str
):
    service.faults.append(s3.Fault("PUT", "", "stall"))
    write(made, 1, 5)
    keeping = threading.Thread(target=made.keep)
    keeping.start()
    assert service.stalled.wait(20)
    shutil.rmtree(made.folder / gone)
    service.released.set()
    keeping.join(60)
    assert ("checkpoint not kept: " in caplog.text) == (gone != ".")
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
        other = another(service, tmp_path / f"other {body!r}")
        other.fetch()
        assert "checkpoint left out: s3://unimed-store/team/store/checkpoints/align-0123abcd-1/1/step-00000005" in caplog.text
        assert not list(other.folder.glob("*/*"))


ZEROS = "0" * 32
WRONG = [
    "[1]",
    "[[1, 2]]",
    "{",
    f'{{"1/step-00000001/..": "{ZEROS}"}}',
    f'{{"../../etc/passwd": "{ZEROS}"}}',
    f'{{"1/step-00000001/../../x": "{ZEROS}"}}',
    f'{{"1/step-00000001/a/../../../x": "{ZEROS}"}}',
    '{"1/step-00000001/a": "x"}',
]


@pytest.mark.parametrize("text", WRONG)
def test_a_listing_that_names_other_places_is_not_followed(
    service: s3.Service, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
):
    service.client.put_object(Bucket=s3.BUCKET, Key=f"{PLACE}.json", Body=text.encode())
    other = another(service, tmp_path / "second")
    other.fetch()
    assert "checkpoint left out: s3://unimed-store/team/store/checkpoints/align-0123abcd-1.json: expected" in caplog.text
    assert not other.folder.exists()
