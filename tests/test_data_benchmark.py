"""The benchmark of the data half runs in small sizes, so that it cannot rot between two runs on an idle machine."""

import pytest

from benchmarks import data


@pytest.mark.slow
def test_every_number_stands_beside_its_baseline(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "replaced by the benchmark, put back by this test")
    kept, scratch = tmp_path / "raw", tmp_path / "scratch"
    scratch.mkdir()
    data.main([20, 40], 64, 96, tries=10, rows=(400, 1600, 100), scratch=scratch, kept=kept)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    size = "400 images, 1,600 masks, 100 conversations"
    checked = ["a second validation, nothing changed", "Great Expectations, its import aside"]
    names = ["ingest, 20 images", "ingest, 40 images", "a training sample", "a mask", *checked, f"plan, {size}", f"tables, {size}"]
    assert [row[0] for row in rows[2:]] == names
    assert all("bar" in row[3] and row[1] for row in rows[2:])
    assert not list(scratch.iterdir()) and len(list((kept / "SAMed2Dv1" / "images").iterdir())) == 40
