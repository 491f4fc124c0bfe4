"""A run that skipped and halved, was killed and goes on ends in the very bytes of one that was left alone, counts included."""

import json
import signal

import pytest
from failing import cut_short, fit, model, refuse_more_than, sample
from safetensors.torch import save_file
from striking import reached
from test_resume import finished, start

pytestmark = pytest.mark.slow
EVERYTHING = {"not_finite": "skip", "unreadable": "skip", "out_of_memory": "halve", "most_skipped": 20}


@pytest.mark.parametrize("way", [{}, {"dtype": "bfloat16"}, {"workers": 1}], ids=["plain", "masters", "read ahead"])
def test_failures_before_and_after_a_kill_leave_the_bytes_of_a_run_left_alone(tmp_path, way):
    samples = [sample(tmp_path, 0), sample(tmp_path, 1, poisoned=True), cut_short(sample(tmp_path, 2)), sample(tmp_path, 3)]

    def run(out):
        made = model()
        refuse_more_than(made, 1)
        history = fit(made, samples, EVERYTHING, batch_size=2, max_steps=8, **way)
        out.mkdir()
        save_file({name: value for name, value in made.named_parameters() if value.requires_grad}, out / "weights.safetensors")
        (out / "history.json").write_text(json.dumps(history, allow_nan=False, sort_keys=True))

    child = start("tiny", run, tmp_path / "killed", struck=(4, 0.01, signal.SIGKILL))
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert 4 <= reached(tmp_path / "killed") < 8
    left = finished("tiny", run, tmp_path / "killed")
    assert left == finished("tiny", run, tmp_path / "whole")
    history = json.loads(left["history.json"])
    assert [history[-1][name] for name in ("not_finite", "unreadable")] == [4, 4]
    for name in ("not_finite", "unreadable", "out_of_memory"):
        assert 0 < history[3][name] < history[-1][name]
