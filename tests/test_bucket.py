"""A download in an S3 bucket gives what the folder gives, through faults of the line too, and never a wrong byte."""

import os
import re
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import raw_tree
import s3
from raw_tree import STEMS

from unimed import job
from unimed.data import ingest, tables
from unimed.data.tables import Tables
from unimed.errors import InputError

pytest_plugins = ["s3"]
pytestmark = pytest.mark.slow

IMAGE = f"SAMed2Dv1/images/{STEMS[0]}.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = raw_tree.write(tmp_path_factory.mktemp("download") / "raw")
    (root / "SAMed2Dv1" / "images" / "ct_00--SetA--case_9--z_0001.png").write_bytes(b"nobody names this")
    return root


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> str:
    return tables.digest(raw_tree.ingested(folder, tmp_path_factory.mktemp("whole")))


@pytest.fixture
def address(service, folder, tmp_path) -> Path:
    """A text file with the address of the same download in a bucket."""
    for file in folder.rglob("*"):
        if file.is_file():
            service.client.upload_file(str(file), s3.BUCKET, f"team/store/{file.relative_to(folder).as_posix()}")
    (tmp_path / "raw").write_text(f"{service.url}\n")
    return tmp_path / "raw"


def gets(service) -> list[str]:
    return [path.partition("?")[0] for path in service.sent("GET") if "/SAMed2Dv1" in path]


def test_only_what_annotations_name_is_fetched_and_each_once(service, address, whole, tmp_path):
    assert tables.digest(raw_tree.ingested(address, tmp_path / "out")) == whole
    fetched = gets(service)
    assert len(fetched) == len(set(fetched)) == 7 + 18 + 2  # images, masks, index and mapping
    assert not any("case_9" in path for path in fetched)


@pytest.mark.parametrize(
    "fault",
    [
        s3.Fault("GET", "SAMed2Dv1/masks", "answer", times=3),
        s3.Fault("GET", "SAMed2Dv1/images", "answer", times=2, status=500, code="InternalError"),
        s3.Fault("GET", "SAMed2Dv1/images", "cut", times=3),
        s3.Fault("GET", "SAMed2Dv1/images", "garble"),
        s3.Fault("GET", "MeCoVQA/train", "garble"),
        s3.Fault("GET", "SAMed2D_v1.json", "cut", times=2),
        s3.Fault("GET", "list-type", "answer"),
    ],
    ids=lambda fault: f"{fault.kind} {fault.path}",
)
def test_a_fault_that_passes_changes_nothing(service, address, whole, tmp_path, fault):
    service.faults.append(fault)
    assert tables.digest(raw_tree.ingested(address, tmp_path / "out")) == whole
    assert fault.times == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (s3.Fault("GET", IMAGE, "garble", times=99), rf"{re.escape(IMAGE)}: expected bytes with md5 [0-9a-f]{{32}}, found others twice"),
        (s3.Fault("GET", IMAGE, "answer", times=99), r"busy or broken \(SlowDown\).*try again later"),
        (s3.Fault("GET", IMAGE, "cut", times=99), "expected an answer, found"),
        (s3.Fault("GET", IMAGE, "answer", times=99, status=403, code="AccessDenied"), "expected a key that may GetObject"),
        (s3.Fault("GET", "SAMed2Dv1/SAMed2D_v1.json", "garble", times=99), "SAMed2D_v1.json: expected bytes with md5"),
    ],
    ids=["garbled", "busy", "cut", "denied", "index garbled"],
)
def test_a_fault_that_stays_ends_the_ingest_with_one_sentence_and_no_secret(service, address, tmp_path, monkeypatch, fault, message):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    service.faults.append(fault)
    raw_tree.refused(address, tmp_path / "out", message)


def test_an_image_that_is_not_there_is_set_aside(service, address, tmp_path):
    service.client.delete_object(Bucket=s3.BUCKET, Key=f"team/store/{IMAGE}")
    out = raw_tree.ingested(address, tmp_path / "out")
    rows = tables.read(out / "tables" / "quarantine.parquet", tables.QUARANTINE)
    assert rows["reason"][rows["kind"] == "image"].item() == f"images/{STEMS[0]}.png: expected a file, found none in the bucket"
    assert len(Tables.read(out / "tables").samples) == 6


def test_a_mask_path_that_leads_outside_is_not_asked_for(service, address, folder, tmp_path):
    text = (
        (folder / raw_tree.INDEX)
        .read_text()
        .replace(f'"images/{STEMS[0]}.png": [', f'"images/{STEMS[0]}.png": ["masks/../../secret.png",', 1)
    )
    service.client.put_object(Bucket=s3.BUCKET, Key=f"team/store/{raw_tree.INDEX}", Body=text.encode())
    out = raw_tree.ingested(address, tmp_path / "out")
    rows = tables.read(out / "tables" / "quarantine.parquet", tables.QUARANTINE)
    assert "expected a path inside SAMed2Dv1, found one that leads outside" in rows["reason"].item()
    assert not any("secret" in path for _, path in service.requests)


@pytest.mark.parametrize("missing", [raw_tree.INDEX, raw_tree.MAPPING, raw_tree.VQA, raw_tree.CAPTIONS])
def test_a_missing_file_of_the_layout_is_named(service, address, tmp_path, missing):
    service.client.delete_object(Bucket=s3.BUCKET, Key=f"team/store/{missing}")
    with pytest.raises(InputError, match=rf"{Path(missing).parent}/.*: expected .*, found (none|no such file)"):
        raw_tree.ingested(address, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"), [("ftp://x", "expected s3://BUCKET/PREFIX"), ("s3://absent-bucket/x", "expected a bucket, found none")]
)
def test_an_address_of_nothing_is_refused(service, tmp_path, text, message):
    (tmp_path / "raw").write_text(text)
    with pytest.raises(InputError, match=message):
        raw_tree.ingested(tmp_path / "raw", tmp_path / "out")


def test_a_file_that_holds_no_address_is_refused(tmp_path):
    (tmp_path / "raw").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match=r"expected a folder, or a text file with s3://BUCKET/PREFIX, found other bytes"):
        raw_tree.ingested(tmp_path / "raw", tmp_path / "out")


def test_objects_that_went_up_in_parts_are_read_too(service, address, folder, whole, tmp_path):
    upload = {"Bucket": s3.BUCKET, "Key": f"team/store/{IMAGE}"}
    number = service.client.create_multipart_upload(**upload)["UploadId"]
    part = service.client.upload_part(**upload, UploadId=number, PartNumber=1, Body=(folder / IMAGE).read_bytes())
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    service.client.complete_multipart_upload(**upload, UploadId=number, MultipartUpload=parts)
    assert service.client.head_object(**upload)["ETag"].endswith('-1"')
    assert tables.digest(raw_tree.ingested(address, tmp_path / "out")) == whole


def test_an_ingest_killed_while_the_bucket_stalls_goes_on_to_the_same_bytes(service, address, whole, tmp_path, monkeypatch):
    service.faults.append(s3.Fault("GET", f"SAMed2Dv1/images/{STEMS[5]}", "stall"))
    monkeypatch.chdir(tmp_path)

    def work() -> None:
        with job.run(job.Job("ingest", "key")):
            ingest.write(address, tmp_path / "out" / "shards", tmp_path / "out" / "tables", seed=0, ingest=raw_tree.TOLERANT)

    child = get_context("fork").Process(target=work)
    child.start()
    assert service.stalled.wait(60)
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    service.released.set()
    assert not (tmp_path / "out").exists()
    work()
    assert tables.digest(tmp_path / "out") == whole
