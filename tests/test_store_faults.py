"""The store when line or server fail: retried, or one sentence that says what and how to mend it, never a wrong file and never a secret."""

import hashlib
import json
import os

import pytest
import s3
from s3 import contents, key

from unimed import hashes
from unimed.errors import InputError
from unimed.store import Store

pytest_plugins = ["s3"]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "POST"])
def test_a_service_that_is_busy_for_a_while_is_asked_again(service, folder, large, tmp_path, method):
    made = large if method == "POST" else folder / "a.json"
    service.faults.append(s3.Fault(method, "team/store", "answer", times=2))
    digest = Store(service.url).push(made)
    Store(service.url).pull(digest, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == made.read_bytes() and service.faults[0].times == 0


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_dropped_connection_is_made_again_and_goes_on(service, large, tmp_path, method):
    service.faults.append(s3.Fault(method, "files/md5", "cut", times=2))
    digest = Store(service.url).push(large)
    Store(service.url).pull(digest, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large.read_bytes() and service.faults[0].times == 0
    got = [path for path in service.sent("GET") if digest[2:] in path and "?" not in path]
    assert len(got) == (3 if method == "GET" else 1)  # and not once more from the start


def test_an_answer_that_got_lost_after_the_work_was_done_is_no_failure(service, large):
    service.faults.append(s3.Fault("POST", "uploadId", "forget"))
    digest = Store(service.url).push(large)
    assert Store(service.url).has(digest) and service.faults[0].times == 0


def test_a_service_that_stays_busy_is_told_as_such(service, folder, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    service.faults.append(s3.Fault("PUT", "files/md5", "answer", times=99))
    with pytest.raises(InputError, match=r"busy or broken \(SlowDown\).*try again later"):
        Store(service.url).push(folder)
    assert not service.names()


def test_a_line_that_drops_again_and_again_is_told_as_such(service, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    digest = Store(service.url).push(folder / "deep/b.bin")
    service.faults.append(s3.Fault("GET", "files/md5", "cut", times=99))
    with pytest.raises(InputError, match="expected an answer, found"):
        Store(service.url).pull(digest, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("bytes_there", [b"wrong", b"by", b"", b"bytes and more"])
def test_a_corrupted_object_is_never_a_file(service, folder, tmp_path, bytes_there):
    store = Store(service.url)
    digest, broken = store.push(folder), hashes.dvc_hash(folder / "deep/b.bin")
    service.client.put_object(Bucket=s3.BUCKET, Key=key(broken), Body=bytes_there)
    found = hashlib.md5(bytes_there, usedforsecurity=False).hexdigest()
    with pytest.raises(InputError, match=f"{key(broken)}: expected bytes with md5 {broken}, found {found}; delete .* push it again"):
        store.pull(digest, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    service.client.delete_object(Bucket=s3.BUCKET, Key=key(broken))
    store.push(folder)
    store.pull(digest, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)


def test_bytes_changed_on_the_way_down_are_fetched_again(service, folder, tmp_path):
    digest = Store(service.url).push(folder / "deep/b.bin")
    service.faults.append(s3.Fault("GET", key(digest), "garble"))
    Store(service.url).pull(digest, tmp_path / "back")
    assert (tmp_path / "back").read_text() == "bytes"


def test_bytes_changed_on_the_way_up_are_refused(service, folder, large):
    for made in (folder / "deep/b.bin", large):
        service.faults.append(s3.Fault("PUT", "files/md5", "garble"))
        with pytest.raises(InputError, match="changed on the way"):
            Store(service.url).push(made)
    assert not service.names()


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (403, "InvalidAccessKeyId", "expected a valid key, found .*InvalidAccessKeyId.* set AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "expected a valid key, found .*SignatureDoesNotMatch.* set AWS_ACCESS_KEY_ID"),
        (403, "AccessDenied", "expected a key that may ListObjectsV2, found that it may not"),
        (301, "PermanentRedirect", "expected the region of the bucket, .*; set AWS_REGION"),
        (403, "RequestTimeTooSkewed", "expected this machine's clock"),
        (404, "NoSuchKey", "expected ListObjectsV2 to succeed, found NoSuchKey"),
        (200, "", "expected an S3 service, found one that answers otherwise"),
        (418, "Teapot", "expected ListObjectsV2 to succeed, found Teapot .HTTP 418.; check"),
    ],
)
def test_a_refusal_is_told_with_its_remedy_and_without_the_key(service, status, code, sentence):
    service.faults.append(s3.Fault("GET", "", "answer", 99, status, code))
    with pytest.raises(InputError, match=f"s3://{s3.BUCKET} at {service.endpoint}: {sentence}") as caught:
        Store(service.url)
    assert "canary" not in str(caught.value) and "message of the server" not in str(caught.value)


def test_a_right_that_is_missing_is_told_by_its_name(service, folder):
    store = Store(service.url)
    service.faults.append(s3.Fault("HEAD", "", "answer", 99, 403, "AccessDenied"))
    with pytest.raises(InputError, match="expected a key that may HeadObject"):
        store.push(folder)


def test_a_bucket_that_is_not_there_is_told_as_such(service):
    with pytest.raises(InputError, match="s3://nowhere at .*: expected a bucket, found none of that name"):
        Store("s3://nowhere/store")


def test_a_service_that_is_not_there_is_told_as_such(service, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:canary-of-a-password@127.0.0.1:9")
    with pytest.raises(InputError, match="http://127.0.0.1:9: expected an answer, found EndpointConnectionError; check AWS_ENDPOINT_URL"):
        Store(service.url)


def test_no_key_at_all_is_told_as_such(service, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match="expected a key, found none; set AWS_ACCESS_KEY_ID"):
        Store(service.url)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_MAX_ATTEMPTS"])
def test_a_setting_that_is_none_is_told_as_such(service, monkeypatch, name):
    monkeypatch.setenv(name, "not a setting")
    with pytest.raises(InputError, match="expected settings for S3 in the AWS_ variables, found ValueError"):
        Store(service.url)


@pytest.mark.parametrize("url", ["models", "s3://", "s3://UPPER/x", "http://bucket/x", "s3://id:canary@bucket/x", "s3://bucket/a?b"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(InputError, match="expected s3://BUCKET/PREFIX") as caught:
        Store(url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "entries",
    [
        [{"md5": "0" * 32, "relpath": relpath}] for relpath in ("../x", "/x", "a/../../x", "a\\..\\x", "", ".", "a//x", "a\0b", 3)
    ]
    + [
        [{"md5": "../" * 10 + "xy", "relpath": "x"}],
        [{"md5": "0" * 32, "relpath": "x"}] * 2,
        [{"md5": "0" * 32, "relpath": "x"}, {"md5": "0" * 32, "relpath": "x/y"}],
        [{"md5": "0" * 32}],
        {"md5": "x"},
        b"[{",
    ],
    ids=str,
)  # fmt: skip
def test_a_listing_that_leads_out_of_its_folder_or_is_none_is_refused(service, tmp_path, entries):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    digest = hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"
    service.client.put_object(Bucket=s3.BUCKET, Key=key(digest), Body=text)
    with pytest.raises(InputError, match=r"\.dir: expected "):
        Store(service.url).pull(digest, tmp_path / "deep/back")
    assert not (tmp_path / "x").exists() and not list((tmp_path / "deep").glob("*"))


def test_a_listing_that_was_changed_is_refused(service, folder, tmp_path):
    digest = Store(service.url).push(folder)
    service.client.put_object(Bucket=s3.BUCKET, Key=key(digest), Body=b"[]")
    with pytest.raises(InputError, match=f"expected a listing with hash {digest}, found "):
        Store(service.url).pull(digest, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_hash_that_is_none_or_unknown_is_refused(service, tmp_path):
    store = Store(service.url)
    with pytest.raises(InputError, match="expected 32 hex digits"):
        store.has("../../other")
    for digest in ("0" * 32, "0" * 32 + ".dir"):
        assert not store.has(digest)
        with pytest.raises(InputError, match="found none; push it"):
            store.pull(digest, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_file_that_changes_while_it_is_pushed_is_not_kept_under_its_old_hash(service, large):
    store = Store(service.url)
    old = hashes.dvc_hash(large)
    for size in (s3.LARGE, 100):
        large.write_bytes(os.urandom(size))
        with pytest.raises(InputError, match="push again once nothing writes to it"):
            store.objects.send(f"files/md5/{old[:2]}/{old[2:]}", large, old, lambda count: None)
    assert not service.names()
