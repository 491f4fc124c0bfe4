"""The store against a real S3 API over HTTP: DVC's layout, nothing sent twice, whatever was interrupted goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import s3
from s3 import contents, key

from conftest import ROOT, wait_until
from unimed import hashes
from unimed.errors import InputError
from unimed.store import Store

pytest_plugins = ["s3"]
pytestmark = pytest.mark.slow


def child(call: str) -> subprocess.Popen[str]:
    """A program that does one thing with the store."""
    code = f"import sys; from pathlib import Path; from unimed.store import Store; print(Store(sys.argv[1]).{call})"
    url = f"s3://{s3.BUCKET}/team/store"
    environ = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen([sys.executable, "-c", code, url], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed(service: s3.Service, call: str, fault: s3.Fault, until: Callable[[], bool] = lambda: True) -> None:
    """Start a program, and kill it in the middle of what the fault names, `until` it has done as much as it can."""
    service.faults.append(fault)
    program = child(call)
    assert service.stalled.wait(60)
    wait_until(until)
    program.send_signal(signal.SIGKILL)
    program.communicate()
    service.released.set()
    service.faults.clear()
    service.requests.clear()


def test_what_goes_in_comes_out_under_the_hash_dvc_gives_it(service, folder, large, tmp_path):
    store = Store(service.url)
    for made in (folder, folder / "empty", large):
        digest = store.push(made)
        assert digest == hashes.dvc_hash(made)
        assert store.has(digest)
        store.pull(digest, tmp_path / "out" / made.name)
    assert contents(tmp_path / "out/made") == contents(folder)
    assert (tmp_path / "out/weights.bin").read_bytes() == large.read_bytes()
    assert (tmp_path / "out/empty").read_bytes() == b""
    assert sorted(found.name for found in (tmp_path / "out").iterdir()) == ["empty", "made", "weights.bin"]  # nothing left beside them


def test_a_folder_without_files_comes_back_as_one(service, tmp_path):
    (tmp_path / "nothing").mkdir()
    digest = Store(service.url).push(tmp_path / "nothing")
    Store(service.url).pull(digest, tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []


def test_a_pull_replaces_what_was_there_and_leaves_what_is_right_alone(service, folder, tmp_path):
    store = Store(service.url)
    digest = store.push(folder)
    back = tmp_path / "back"
    (back / "stale").mkdir(parents=True)
    store.pull(digest, back)
    assert contents(back) == contents(folder) and not (back / "stale").exists()
    service.requests.clear()
    store.pull(digest, back)
    assert not service.requests


@pytest.mark.slow
def test_dvc_pulls_what_the_store_has_and_the_other_way_round(service, folder, tmp_path):
    def dvc(*words: str) -> None:
        subprocess.run([Path(sys.executable).with_name("dvc"), *words], cwd=repo, check=True, capture_output=True)

    repo = tmp_path / "repo"
    repo.mkdir()
    dvc("init", "--no-scm")
    dvc("remote", "add", "-d", "store", service.url)
    (tmp_path / "nothing").mkdir()
    digests = {made.name: Store(service.url).push(made) for made in (folder, folder / "a.json", tmp_path / "nothing")}
    for name, digest in digests.items():
        (repo / f"{name}.dvc").write_text(f"outs:\n- md5: {digest}\n  hash: md5\n  path: {name}\n")
    dvc("pull")
    assert contents(repo / "made") == contents(folder) and (repo / "a.json").read_text() == "{}" and (repo / "nothing").is_dir()
    (repo / "other").mkdir()
    (repo / "other/new.txt").write_text("made on a laptop")
    dvc("add", "other")
    dvc("push")
    Store(service.url).pull(hashes.dvc_hash(repo / "other"), tmp_path / "other")
    assert contents(tmp_path / "other") == {"new.txt": b"made on a laptop"}


def test_a_second_push_sends_nothing(service, folder, large):
    large.rename(folder / "large")
    Store(service.url).push(folder)
    service.requests.clear()
    Store(service.url).push(folder)
    assert service.sent("HEAD") and not service.sent("PUT", "POST")


def test_the_listing_goes_last(service, folder):
    Store(service.url).push(folder)
    puts = service.sent("PUT")
    assert puts[-1].endswith(".dir") and len(puts) == 5  # two files are alike


def test_an_object_of_another_size_is_put_again(service, folder, tmp_path):
    store = Store(service.url)
    digest = store.push(folder)
    for broken in service.names():
        service.client.put_object(Bucket=s3.BUCKET, Key=broken, Body=b"far too much of it" * 50)
    assert store.push(folder) == digest
    store.pull(digest, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)


def test_a_killed_push_goes_on_with_the_parts_that_are_missing(service, large, tmp_path):
    killed(service, f"push(Path({str(large)!r}))", s3.Fault("PUT", "partNumber=3", "stall"))
    digest = Store(service.url).push(large)
    assert ["partNumber=3" in path for path in service.sent("PUT")] == [True]
    Store(service.url).pull(digest, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


def test_a_killed_pull_goes_on_in_the_middle_of_the_file(service, folder, large, tmp_path):
    large.rename(folder / "large")
    digest = Store(service.url).push(folder)
    back = tmp_path / "back"
    kept = tmp_path / "back.partial/large"
    fault = s3.Fault("GET", key(hashes.dvc_hash(folder / "large")), "stall")
    killed(service, f"pull({digest!r}, Path({str(back)!r}))", fault, lambda: kept.stat().st_size >= s3.LARGE / 4)  # not still on the wire
    assert kept.stat().st_size < s3.LARGE and not back.exists()
    Store(service.url).pull(digest, back)
    assert contents(back) == contents(folder)
    assert len(service.sent("GET")) < 1 + 1 + 5  # opening, listing, and not every file again


def test_what_lies_in_the_way_of_a_pull_does_no_harm(service, folder, tmp_path):
    digest = Store(service.url).push(folder)
    partial, elsewhere = tmp_path / "back.partial", tmp_path / "elsewhere"
    for name in ("a.json/x", "stranger/y"):
        (partial / name).mkdir(parents=True)
    elsewhere.mkdir()
    (partial / "deep").symlink_to(elsewhere)
    (partial / "größe ü.txt").write_text("y")
    (partial / "empty").write_text("longer than it should be")
    Store(service.url).pull(digest, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    assert not list(elsewhere.iterdir()) and not (tmp_path / "back/stranger").exists()


def test_two_programs_that_push_the_same_at_once_both_succeed(service, folder, large):
    large.rename(folder / "large")
    programs = [child(f"push(Path({str(folder)!r}))") for _ in range(2)]
    told = [program.communicate() for program in programs]
    assert {out.strip() for out, _ in told} == {hashes.dvc_hash(folder)}, told
    sizes = {found["Key"]: found["Size"] for found in service.client.list_objects_v2(Bucket=s3.BUCKET)["Contents"]}
    assert sizes[key(hashes.dvc_hash(folder / "large"))] == s3.LARGE


def test_two_programs_that_pull_to_the_same_place_never_mix_their_bytes(service, large, tmp_path):
    digest = Store(service.url).push(large)
    programs = [child(f"pull({digest!r}, Path({str(tmp_path / 'back')!r}))") for _ in range(2)]
    told = [program.communicate() for program in programs]
    assert [program.returncode for program in programs] == [0, 0], told
    assert (tmp_path / "back").read_bytes() == large.read_bytes()


def test_a_record_is_kept_by_name_and_a_new_one_replaces_it(service):
    store = Store(service.url)
    assert store.record("align", "0123456789abcdef") is None
    for lock in ({"cmd": "python -m one"}, {"cmd": "größe"}):
        store.put_record("align", "0123456789abcdef", {"stage": "align", "lock": lock})
        assert store.record("align", "0123456789abcdef") == {"stage": "align", "lock": lock}
    assert service.names() == ["team/store/recipes/align-0123456789abcdef.json"]


def test_a_record_with_another_name_or_broken_text_is_refused(service):
    store = Store(service.url)
    for name in ("../x", "", "a/b", "a.json"):
        with pytest.raises(InputError, match="expected a name of letters"):
            store.put_record(name, "key", {})
    service.client.put_object(Bucket=s3.BUCKET, Key="team/store/recipes/x-y.json", Body=b"{")
    with pytest.raises(InputError, match="expected a record in JSON"):
        store.record("x", "y")


def test_a_path_that_is_not_there_is_refused(service, tmp_path):
    with pytest.raises(InputError, match="expected a file or folder to push, found nothing"):
        Store(service.url).push(tmp_path / "none")
