"""A bucket that stops in the middle of an answer is asked again or ends the ingest with one sentence; half an answer becomes no row."""

import time
from pathlib import Path

import pytest
import raw_tree
import s3
from raw_tree import STEMS

from unimed import s3_client
from unimed.data import tables
from unimed.errors import InputError
from unimed.objects import CHUNK

pytest_plugins = ["s3"]
pytestmark = pytest.mark.slow

IMAGE = f"SAMed2Dv1/images/{STEMS[0]}.png"
MASK = f"SAMed2Dv1/{raw_tree.mask_path(STEMS[0], 'liver', 0)}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A second of silence instead of a minute is what a service may take, and two attempts are made."""
    monkeypatch.setattr(s3_client, "READ_TIMEOUT_S", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A download whose index takes several chunks to fetch."""
    root = raw_tree.write(tmp_path / "folder")
    with (root / raw_tree.INDEX).open("a") as index:
        index.write(" " * (2 * CHUNK))
    return root


@pytest.fixture
def address(service, folder, tmp_path) -> Path:
    for file in folder.rglob("*"):
        if file.is_file():
            service.client.upload_file(str(file), s3.BUCKET, f"team/store/{file.relative_to(folder).as_posix()}")
    (tmp_path / "raw").write_text(service.url)
    return tmp_path / "raw"


@pytest.mark.parametrize(
    ("kind", "path"),
    [("stall", IMAGE), ("stall", MASK), ("stall", raw_tree.INDEX), ("stall", raw_tree.VQA), ("silence", IMAGE), ("silence", "list-type")],
)
def test_a_service_that_stops_once_is_asked_again_and_nothing_is_changed(service, address, folder, tmp_path, kind, path):
    service.faults.append(s3.Fault("GET", path, kind))
    made = tables.digest(raw_tree.ingested(address, tmp_path / "out"))
    assert service.stalled.is_set() and not service.released.is_set(), "it was still waiting when the ingest had its answer"
    assert sum(path in asked for asked in service.sent("GET")) >= 2
    assert made == tables.digest(raw_tree.ingested(folder, tmp_path / "whole"))


@pytest.mark.parametrize(("kind", "path"), [("stall", IMAGE), ("stall", raw_tree.INDEX), ("silence", MASK)])
def test_a_service_that_stops_each_time_ends_the_ingest_in_bounded_time_with_one_sentence(service, address, tmp_path, kind, path):
    service.faults.append(s3.Fault("GET", path, kind, times=99))
    begun = time.monotonic()
    with pytest.raises(InputError, match="expected an answer, found ReadTimeoutError; check .* the network, then try again") as error:
        raw_tree.ingested(address, tmp_path / "out")
    assert time.monotonic() - begun < 30, "two attempts of a second each, for each part of what is asked"
    assert "\n" not in str(error.value) and s3.SECRET not in str(error.value)
    assert not (tmp_path / "out" / "tables").exists() and not (tmp_path / "out" / "shards").exists()
