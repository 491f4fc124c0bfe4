"""Hashes of files: the same whether they are taken one after the other or side by side."""

import hashlib
import json
import threading

import pytest

from unimed import hashes
from unimed.errors import InputError
from unimed.model import artifacts


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files that count as large, and between them a small one."""
    monkeypatch.setattr(hashes, "LARGE", 3)
    found = [tmp_path / name for name in ("a", "b", "c")]
    for file, content in zip(found, (b"first", b"2", b"third"), strict=True):
        file.write_bytes(content)
    return found


def test_a_folder_s_listing_has_the_md5_of_every_file_in_order(files, tmp_path):
    expected = [hashlib.md5(content, usedforsecurity=False).hexdigest() for content in (b"first", b"2", b"third")]
    assert hashes.listing(tmp_path) == [{"md5": md5, "relpath": name} for md5, name in zip(expected, "abc", strict=True)]


def test_large_files_are_read_at_the_same_time_and_small_ones_where_they_are_asked_for(files):
    both, here = threading.Barrier(2, timeout=20), threading.get_ident()

    def digest(file):
        if file.name == "b":
            assert threading.get_ident() == here
        else:
            both.wait()  # which nobody passes alone
        return file.name

    assert hashes.each(digest, files) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_sealed_folder_is_held_to_every_hash(files, tmp_path, name):
    artifacts.seal(tmp_path, {})
    assert artifacts.verify(tmp_path)["files"].keys() == {"a", "b", "c"}
    (tmp_path / name).write_bytes(b"other")
    with pytest.raises(InputError, match=f"{name}: expected sha256 [0-9a-f]{{64}}, found {hashlib.sha256(b'other').hexdigest()}"):
        artifacts.verify(tmp_path)


def test_a_manifest_may_name_a_file_twice_and_each_name_is_held_to_its_hash(files, tmp_path):
    artifacts.seal(tmp_path, {})
    place = tmp_path / artifacts.MANIFEST
    manifest = json.loads(place.read_text())
    manifest["files"]["./a"] = "0" * 64
    place.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=f"a: expected sha256 {'0' * 64}"):
        artifacts.verify(tmp_path)
