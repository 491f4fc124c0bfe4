"""The benchmarks run in small shapes on a CPU, so that they cannot rot between two runs that are looked at."""

import contextlib

import pytest
import typer

from benchmarks import gpu, serving


@pytest.mark.slow
def test_every_stage_is_measured_beside_its_baseline(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gpu.main("tiny", 64, 1, ["stage1", "stage2", "mix", "stage3", "stage4"], compile=False)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    names = ["1, encoders", "2, words alone", "2, mixed lengths", "2, encoders", "3, over stage 2"]
    assert [row[0] for row in rows[2:]] == [*names, "4, 2 experts over one LoRA", "4, 4 experts over one LoRA"]
    assert all(" x " in row[2] and "% of " in row[3] for row in rows[2:5])


@pytest.mark.slow
def test_a_service_is_measured_beside_a_loop(capsys):
    with contextlib.suppress(typer.Exit):  # whether it meets its bounds is for a machine that does nothing else
        serving.main(words=2, seconds=1)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split("|")[3].strip() for row in rows[2:]] == ["at least 2", "below 2", "200 alone", "none but 429"]
    assert "answers/s served" in rows[2] and "'200'" in rows[4]
