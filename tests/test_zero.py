"""Stages 1 to 4 under ZeRO-3, which spreads every weight over two processes: losses and what is stored are one process's."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zero_stages
from test_processes import TWO, ZERO

from conftest import ROOT
from unimed.errors import InputError
from unimed.model import artifacts, weights
from unimed.train import zero

SPREAD = ZERO | {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}  # else what is small stays whole


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its communication when it first starts, with g++")
def test_what_two_processes_log_and_store_of_weights_spread_over_them_is_what_one_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("zero.json").write_text(json.dumps(SPREAD))
    known = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT / "src", ROOT))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *TWO, "-m", "zero_stages", str(tmp_path), "zero.json"]
    done = subprocess.run(command, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    zero_stages.run(tmp_path / "alone")
    for way in zero_stages.WAYS:
        one, *several = (tmp_path / process / way for process in ("alone", "0", "1"))
        for folder in several:
            # The last digits are the order of sums; AdamW makes steps of them where a gradient is nothing else.
            assert losses(folder) == pytest.approx(losses(one), abs=1e-5)
            torch.testing.assert_close(weights.read(folder), weights.read(one), atol=1e-4, rtol=0)


def losses(folder):
    return artifacts.verify(folder)["losses"]


def test_stage_5_refuses_spread_weights_in_one_sentence(tmp_path):
    place = tmp_path / "zero.json"
    with pytest.raises(InputError, match=r"zero.json: expected DeepSpeed's configuration as JSON, found "):
        zero.refuse(None, place)
    for text in ("{", "[]", '{"zero_optimization": 3}'):
        place.write_text(text)
        with pytest.raises(InputError, match=r"zero.json: expected DeepSpeed's configuration as JSON, found "):
            zero.refuse(place)
    place.write_text(json.dumps(ZERO))
    zero.refuse(place, None)
    place.write_text(json.dumps(SPREAD))
    with pytest.raises(InputError, match=r"zero.json: expected a stage of ZeRO below 3 in stage 5, which writes answers, found 3"):
        zero.refuse(None, place)


def test_only_zero_2_and_zero_3_that_keep_all_on_the_gpu_are_gone_on_from_and_others_say_so(caplog):
    away = {"device": "cpu"}
    assert zero.is_resumable(None) and zero.is_resumable(ZERO) and zero.is_resumable(SPREAD)
    assert zero.is_resumable({"zero_optimization": {"stage": 3, "offload_param": {"device": "none"}}})
    assert not caplog.messages
    others = ({}, {"stage": 0}, {"stage": 1}, {"stage": 2, "offload_optimizer": away}, {"stage": 3, "offload_param": away})
    assert not any(zero.is_resumable({"zero_optimization": other}) for other in others)
    assert len(caplog.messages) == 5 and "a run that is interrupted starts anew" in caplog.messages[0]
