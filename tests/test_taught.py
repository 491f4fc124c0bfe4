"""A training that goes on knows what was taught before it was interrupted, and what never was."""

import pytest
import tiny
from test_loop import WEIGHTS, absent, fit, several

from unimed import job
from unimed.model import assemble
from unimed.train import loop, resuming


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """The trainer names a folder relative to where it runs."""
    monkeypatch.chdir(tmp_path)


class Early:
    """Epochs of two samples, of which the first alone have masks; the third epoch cannot be read at first."""

    def __init__(self, folder, samples):
        self.first, self.later, self.broken = [samples[1], samples[3]], [absent(folder, seed) for seed in (20, 21)], True

    def __len__(self):
        return 2

    def at_epoch(self, epoch):
        if self.broken and epoch == 2:
            raise InterruptedError
        return self.later if epoch else self.first


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_goes_on_knows_what_was_taught_before(tmp_path, caplog, monkeypatch, dtype):
    monkeypatch.setattr(resuming, "EVERY_SECONDS", 0.0)
    epochs = Early(tmp_path, several(tmp_path, 8))

    def run(end=None):
        model = tiny.stirred()
        loop.train_only(model, assemble.GROUNDING)
        with job.run(job.Job("tiny", "key")):
            history = fit(model, epochs, batch_size=2, dtype=dtype, mask_loss=WEIGHTS)
            if end is not None:
                raise end
        return history

    with pytest.raises(InterruptedError):
        run()
    assert [place.name for place in tmp_path.glob("runs/tiny-key/checkpoints/1/*")] == ["step-00000001"]
    epochs.broken = False
    with pytest.raises(OSError, match="full"):
        run(OSError("the disk is full"))
    assert (tmp_path / "runs/tiny-key/checkpoints/1/step-00000003").exists()
    assert ["loss_pixel" in entry for entry in run()] == [True, False, False], "from its last step"
    assert not [record for record in caplog.records if record.name == "train"]


def test_a_run_that_goes_on_warns_of_what_was_never_taught(tmp_path, caplog):
    def run(end=None):
        model = tiny.stirred()
        loop.train_only(model, assemble.GROUNDING)
        with job.run(job.Job("tiny", "key")):
            fit(model, tiny.samples(absent(tmp_path, 20)), mask_loss=WEIGHTS)
            if end is not None:
                raise end

    with pytest.raises(OSError, match="full"):
        run(OSError("the disk is full"))
    run()
    first, again = [record.getMessage() for record in caplog.records if record.name == "train"]
    assert first == again and "no sample had a target mask" in first
