"""An ingest that is killed goes on after its finished shards and ends in the bytes of one that was left alone."""

import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import raw_tree

from benchmarks import tree
from unimed import job, outputs
from unimed.data import ingest, kept, tables
from unimed.errors import BAD_INPUT, InputError

SETTINGS = raw_tree.TOLERANT.model_copy(update={"max_pixels": 2**20, "max_bad_fraction": 0.2})
IMAGES = 20
SHARDS = 4


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A download that fills four shards of a megabyte, with an image that cannot be used in the second and one at the end."""
    root = tree.write(tmp_path_factory.mktemp("download") / "raw", IMAGES, 560, 560)
    for number in (7, IMAGES - 1):
        (root / "SAMed2Dv1" / "images" / f"{tree.stem(number)}.png").write_bytes(b"broken")
    return root


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory) -> str:
    """The hash of what an ingest leaves that nothing disturbs."""
    out = raw_tree.ingested(raw, tmp_path_factory.mktemp("whole"), SETTINGS)
    assert len(list((out / "shards").iterdir())) == SHARDS
    return tables.digest(out)


def run(raw: Path, folder: Path) -> None:
    """The ingest as a job in a folder, with outputs that are complete or absent."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    with job.run(job.Job("ingest", "key")), outputs.complete({name: folder / "out" / name for name in ("shards", "tables")}) as places:
        ingest.write(raw, places["shards"], places["tables"], seed=0, ingest=SETTINGS)


def killed(raw: Path, folder: Path, sealed: int, delay: float) -> None:
    """Run it in a process of its own that kills itself some time after so many shards are sealed."""

    def strike() -> None:
        while len(seals(folder)) < sealed:
            time.sleep(0.0005)
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        threading.Thread(target=strike, daemon=True).start()
        run(raw, folder)
        os.kill(os.getpid(), signal.SIGKILL)  # it was faster than the stroke

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def seals(folder: Path) -> list[Path]:
    return sorted(folder.glob("runs/*/checkpoints/1/rows/*/seal.json"))


@pytest.mark.slow
@pytest.mark.parametrize(("sealed", "delay"), [(0, 0.05), (1, 0.0), (1, 0.01), (2, 0.02), (3, 0.0), (SHARDS, 0.0), (SHARDS, 0.1)])
def test_an_ingest_killed_at_any_moment_ends_in_the_bytes_of_one_left_alone(raw, whole, tmp_path, monkeypatch, sealed, delay):
    killed(raw, tmp_path / "job", sealed, delay)
    done = [file.stat().st_ino for file in seals(tmp_path / "job")]
    assert len(done) >= min(sealed, SHARDS) or (tmp_path / "job" / "out" / "tables").exists()
    monkeypatch.chdir(tmp_path)
    run(raw, tmp_path / "job")
    assert tables.digest(tmp_path / "job" / "out") == whole
    assert not (tmp_path / "job" / "runs").exists() or not list((tmp_path / "job" / "runs").rglob("*.tar"))


def filled(raw: Path, folder: Path) -> Path:
    """Where an ingest keeps its work that failed after all shards were done; here for want of a folder for the tables."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    (folder / "file").touch()
    with pytest.raises(OSError, match="Not a directory"), job.run(job.Job("ingest", "key")):
        ingest.write(raw, folder / "out" / "shards", folder / "file" / "tables", seed=0, ingest=SETTINGS)
    return folder / "runs" / "ingest-key" / "checkpoints" / "1"


def spoil(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoilt", "goes_on_after"),
    [
        (lambda work: None, SHARDS),
        (lambda work: spoil(work / "shards/shard-000002.tar"), 2),
        (lambda work: (work / "shards/shard-000001.tar").unlink(), 1),
        (lambda work: os.truncate(work / "shards/shard-000003.tar", 4096), 3),
        (lambda work: spoil(work / "rows/000001/masks.parquet"), 1),
        (lambda work: (work / "rows/000000/seal.json").write_text("{"), 0),
    ],
    ids=["nothing", "a shard changed", "a shard gone", "a shard cut", "rows changed", "a seal broken"],
)
def test_what_was_spoilt_meanwhile_is_packed_again_and_all_before_it_kept(raw, whole, tmp_path, monkeypatch, caplog, spoilt, goes_on_after):
    monkeypatch.chdir(tmp_path)
    work = filled(raw, tmp_path / "job")
    assert len(seals(tmp_path / "job")) == SHARDS
    spoilt(work)
    with caplog.at_level(logging.INFO):
        run(raw, tmp_path / "job")
    assert tables.digest(tmp_path / "job" / "out") == whole
    assert (f"goes on after {goes_on_after} shards" in caplog.text) == (goes_on_after > 0)


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["a question", "the classes", "the settings"])
def test_shards_of_other_work_are_not_gone_on_with(raw, tmp_path, monkeypatch, changed):
    copy = tmp_path / "raw"
    subprocess.run(["cp", "-r", raw, copy], check=True)
    monkeypatch.chdir(tmp_path)
    filled(copy, tmp_path / "job")
    settings = SETTINGS
    if changed == "a question":
        raw_tree.edit(copy, raw_tree.VQA, lambda rows: rows[0]["conversations"][0].update(value="Is there a spleen?"))
    elif changed == "the classes":
        raw_tree.edit(copy, raw_tree.MAPPING, lambda mapping: mapping["Set0"].update({"bile duct": 9}))
    else:
        settings = SETTINGS.model_copy(update={"max_pixels": 2**19})
    with job.run(job.Job("ingest", "key")):
        try:
            ingest.write(copy, tmp_path / "again" / "shards", tmp_path / "again" / "tables", seed=0, ingest=settings)
        except InputError:
            assert changed == "the settings"  # too many images are too large now
            return
    assert tables.digest(tmp_path / "again") == tables.digest(raw_tree.ingested(copy, tmp_path / "fresh", settings))


def begun(raw: Path, folder: Path, limit: int = resource.RLIM_INFINITY) -> multiprocessing.Process:
    """The ingest in a process of its own, with the most bytes that a file of it may have; it ends as a component does, told why."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            run(raw, folder)
        except InputError as error:
            (folder / f"told-{os.getpid()}").write_text(str(error))
            os._exit(BAD_INPUT)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


@pytest.mark.slow
def test_of_two_ingests_at_once_one_is_told_so_and_the_other_is_right(raw, whole, tmp_path):
    children = [begun(raw, tmp_path / "job") for _ in range(2)]
    for child in children:
        child.join()
    assert sorted(child.exitcode for child in children) == [0, BAD_INPUT]
    [told] = (tmp_path / "job").glob("told-*")
    assert "expected no other program that writes it, found one; wait until it has ended" in told.read_text()
    assert tables.digest(tmp_path / "job" / "out") == whole


@pytest.mark.slow
def test_a_claim_ends_with_the_process_and_is_not_handed_to_its_children(tmp_path):
    target = {"made": tmp_path / "made"}

    def hold() -> None:
        with outputs.complete(target):
            multiprocessing.get_context("fork").Process(target=time.sleep, args=(3,)).start()
            os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=hold)
    child.start()
    child.join()
    with outputs.complete(target) as places:
        places["made"].write_text("x")
    assert target["made"].read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.slow
def test_a_disk_that_is_full_half_way_is_told_in_one_sentence_and_what_is_finished_is_kept(raw, whole, tmp_path, monkeypatch):
    full = begun(raw, tmp_path / "job", limit=700_000)
    full.join()
    assert full.exitcode == BAD_INPUT
    [told] = (tmp_path / "job").glob("told-*")
    assert "expected room on the disk, found none" in told.read_text() and "make some and start again" in told.read_text()
    assert not (tmp_path / "job" / "out" / "shards").exists() and not (tmp_path / "job" / "out" / "tables").exists()
    monkeypatch.chdir(tmp_path)
    run(raw, tmp_path / "job")
    assert tables.digest(tmp_path / "job" / "out") == whole


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores for two workers")
def test_workers_end_with_the_process_that_they_work_for():
    # Not forked from here: a fork would take this process's own server of workers for its own.
    program = "import time; from unimed.data import pool; list(pool.ordered(time.sleep, [60] * 4, worth=1))"
    child = psutil.Popen([sys.executable, "-c", program])
    known: list[psutil.Process] = []
    while sum("forkserver" in " ".join(process.cmdline()) for process in known) < 3:  # the server and two workers
        assert child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        time.sleep(0.05)
        known = child.children(recursive=True)
    child.kill()
    child.wait()
    assert not psutil.wait_procs(known, timeout=30)[1]


def test_kept_rows_hold_all_columns_that_a_shard_can_know():
    assert set(kept.ROWS["samples"].names) == set(tables.SAMPLES.names) - {"split", "licence"}
