"""The benchmark runs in small shapes on a CPU, so that it cannot rot between two runs on a GPU."""

import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_every_stage_is_measured_beside_its_baseline(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gpu.main("tiny", 64, 1, ["stage1", "stage2", "mix", "stage3", "stage4"], compile=False)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    names = ["1, encoders", "2, words alone", "2, mixed lengths", "2, encoders", "3, over stage 2"]
    assert [row[0] for row in rows[2:]] == [*names, "4, 2 experts over one LoRA", "4, 4 experts over one LoRA"]
    assert all(" x " in row[2] and "% of " in row[3] for row in rows[2:5])
