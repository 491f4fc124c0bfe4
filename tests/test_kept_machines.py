"""The checkpoints of several machines in the store: of each the two newest, so that one is common to all, gone when the stage is done."""

from pathlib import Path

import pytest
import s3
from test_kept import write

from pipelines.kept import Kept
from unimed.store import Store

pytest_plugins = ["s3"]
pytestmark = pytest.mark.slow


def machine(service: s3.Service, place: int, folder: Path) -> Kept:
    """What is kept of one of two machines."""
    return Kept(Store(service.url), "align", "0123abcd", f"2x1-{place}", folder / str(place), count=2)


def test_one_that_has_not_got_its_last_through_finds_the_one_before_with_the_other(service: s3.Service, tmp_path: Path):
    first, second = (machine(service, place, tmp_path / "before") for place in range(2))
    for step in (5, 10, 15):
        write(first, 1, step)
        first.keep()
        if step < 15:
            write(second, 1, step)
            second.keep()
    found = []
    for place in range(2):
        other = machine(service, place, tmp_path / "after")
        other.fetch()
        found.append({step.name for step in other.folder.glob("1/step-*")})
    assert found == [{"step-00000010", "step-00000015"}, {"step-00000005", "step-00000010"}]


def test_the_first_lets_go_of_what_all_have_kept(service: s3.Service, tmp_path: Path):
    for place in range(2):
        other = machine(service, place, tmp_path / "before")
        write(other, 1, 5)
        other.keep()
    for place in range(2):
        machine(service, place, tmp_path / "never").drop()
    assert service.names() == []


def test_what_came_through_of_one_that_was_not_kept_goes_and_the_kept_one_stays(service: s3.Service, tmp_path: Path):
    own = machine(service, 1, tmp_path)
    write(own, 1, 5)
    own.keep()
    names = service.names()
    write(own, 1, 10)
    service.faults.append(s3.Fault("PUT", "step-00000010/process", "answer", times=99, status=403, code="AccessDenied"))
    own.keep()
    assert len(service.names()) == len(names) + 1
    own.tidy()
    assert service.names() == names
