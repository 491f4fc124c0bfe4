"""The benchmark of DVC on packed and unpacked data runs in a small size, so that it cannot rot."""

import sys

import pytest

from benchmarks import versions


@pytest.mark.slow
def test_the_same_images_and_masks_are_versioned_packed_and_unpacked(monkeypatch, capsys):
    sizes = ("--images", "6", "--masks-per-image", "2", "--pixels", "32", "--rounds", "1")
    monkeypatch.setattr(sys, "argv", ["versions", *sizes])
    versions.main()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["", "files", "add, s", "push, s", "checkout, s"]
    assert [row[:2] for row in rows[2:]] == [["packed", "3"], ["unpacked", "18"], ["times faster", ""]]
    assert all(float(cell) > 0 for row in rows[2:] for cell in row[2:])
