"""The hash of a file's bytes: the file is not read again while nothing touches it, and every touch is seen."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from unimed.data import fact_cache

SIZE = 2**22
OLD, NEW = b"a" * SIZE, b"b" * SIZE


@pytest.fixture(scope="module")
def settled(tmp_path_factory):
    """Files that have been left alone for long enough that their times tell something."""
    folder = tmp_path_factory.mktemp("settled")
    for name in ("read", "written", "replaced"):
        (folder / name).write_bytes(OLD)
    time.sleep(2.1)
    return folder


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def bytes_read() -> int:
    """What this process has read so far, from files and from caches of the system."""
    return int(Path("/proc/self/io").read_text().partition("rchar:")[2].split()[0])


def test_a_file_that_nothing_touched_is_read_once(settled, tmp_path):
    began = bytes_read()
    assert fact_cache.sha256(settled / "read", tmp_path) == digest(OLD)
    first = bytes_read()
    assert fact_cache.sha256(settled / "read", tmp_path) == digest(OLD)
    assert first - began >= SIZE > 10 * (bytes_read() - first)


def test_without_a_cache_a_file_is_read_each_time(settled):
    fact_cache.sha256(settled / "read", None)
    began = bytes_read()
    assert fact_cache.sha256(settled / "read", None) == digest(OLD)
    assert bytes_read() - began >= SIZE


def test_bytes_that_changed_in_place_are_seen_though_size_and_time_are_put_back(settled, tmp_path):
    file = settled / "written"
    assert fact_cache.sha256(file, tmp_path) == digest(OLD)
    about = file.stat()
    file.write_bytes(NEW)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    assert fact_cache.sha256(file, tmp_path) == digest(NEW)


def test_another_file_in_its_place_is_seen_though_size_and_time_are_the_same(settled, tmp_path):
    file, other = settled / "replaced", settled / "other"
    assert fact_cache.sha256(file, tmp_path) == digest(OLD)
    about = file.stat()
    other.write_bytes(NEW)
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    other.replace(file)
    assert fact_cache.sha256(file, tmp_path) == digest(NEW)


def test_the_hash_of_a_file_that_was_just_written_is_not_kept(tmp_path):
    """It could be written again within the same tick of the clock."""
    file, cache = tmp_path / "file", tmp_path / "cache"
    for content in (OLD, NEW, OLD):
        file.write_bytes(content)
        assert fact_cache.sha256(file, cache) == digest(content)
    assert not list(cache.rglob("*.facts"))
