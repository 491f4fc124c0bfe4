"""An archive in parts in an S3 bucket gives what the unpacked folder gives, by ranges of its parts; a part that is replaced is told."""

import hashlib
import json
import re
import shutil
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import raw_tree
import s3
from archived import cut, fill, needs_zip, packed, rezipped, unpacked
from PIL import Image
from raw_tree import STEMS

from benchmarks import tree
from unimed import job
from unimed.data import ingest, tables
from unimed.errors import InputError

pytest_plugins = ["s3"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return fill(unpacked(tmp_path_factory.mktemp("download") / "raw"))


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> str:
    return tables.digest(raw_tree.ingested(folder, tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def in_parts(folder, tmp_path_factory) -> Path:
    """The download with its archive in parts of 64 KB: images in each of the first four, masks in the fourth, the directory in the last."""
    return packed(folder, tmp_path_factory.mktemp("parts") / "archived", "-s", "64k", "-0")


def uploaded(service: s3.Service, root: Path, place: Path) -> Path:
    """A text file in the folder `place` with the address of what lies under `root`, put in the bucket."""
    for file in root.rglob("*"):
        if file.is_file():
            put(service, file.relative_to(root).as_posix(), file.read_bytes())
    (place / "raw").write_text(f"{service.url}\n")
    return place / "raw"


def put(service: s3.Service, name: str, content: bytes) -> None:
    service.client.put_object(Bucket=s3.BUCKET, Key=f"team/store/{name}", Body=content)


def gets(service: s3.Service, name: str) -> list[str]:
    return [path for path in service.sent("GET") if f"team/store/{name}" in path]


@needs_zip
@pytest.mark.parametrize("options", [(), ("-s", "64k"), ("-s", "64k", "-0"), ("-fz",)], ids=["whole", "parts", "stored parts", "zip64"])
def test_an_archive_in_a_bucket_gives_the_bytes_of_the_folder_and_of_the_archive_on_disk(service, folder, whole, tmp_path, options):
    root = packed(folder, tmp_path / "archived", *options)
    assert (len(list(root.glob("SA-Med2D.z*"))) > 3) == ("-s" in options)
    assert tables.digest(raw_tree.ingested(root, tmp_path / "disk")) == whole
    assert tables.digest(raw_tree.ingested(uploaded(service, root, tmp_path), tmp_path / "bucket")) == whole


def test_members_and_directory_that_cross_from_piece_to_piece_are_read_too(service, whole, tmp_path):
    root = cut(rezipped(unpacked(tmp_path / "folder"), tmp_path / "archived"), 40)
    assert (root / "SA-Med2D.z01").stat().st_size < 1000 < (tmp_path / "folder" / "SAMed2Dv1" / "images" / f"{STEMS[4]}.png").stat().st_size
    assert tables.digest(raw_tree.ingested(uploaded(service, root, tmp_path), tmp_path / "out")) == whole


@needs_zip
def test_a_member_costs_one_request_and_only_what_annotations_name_is_asked_for(service, folder, tmp_path):
    address = uploaded(service, packed(folder, tmp_path / "archived"), tmp_path)
    raw_tree.ingested(address, tmp_path / "out")
    asked = len(gets(service, "SA-Med2D.zip"))
    assert asked == 7 + 18 + 2 + 2, "images, masks, index and mapping; the end of the directory and the directory"


@needs_zip
@pytest.mark.parametrize(
    "fault",
    [
        s3.Fault("GET", "SA-Med2D.z02", "answer", times=3),
        s3.Fault("GET", "SA-Med2D.z03", "cut", times=3),
        s3.Fault("GET", "SA-Med2D.z01", "garble"),
        s3.Fault("GET", "SA-Med2D.zip", "cut", times=2),
        s3.Fault("HEAD", "SA-Med2D.z02", "answer"),
    ],
    ids=lambda fault: f"{fault.kind} {fault.path}",
)
def test_a_fault_that_passes_changes_nothing(service, in_parts, whole, tmp_path, fault):
    address = uploaded(service, in_parts, tmp_path)
    service.faults.append(fault)
    assert tables.digest(raw_tree.ingested(address, tmp_path / "out")) == whole
    assert fault.times == 0


@needs_zip
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (s3.Fault("GET", "SA-Med2D.z02", "answer", times=99), r"busy or broken \(SlowDown\).*try again later"),
        (s3.Fault("GET", "SA-Med2D.z02", "cut", times=99), "expected an answer, found"),
        (s3.Fault("GET", "SA-Med2D.z01", "answer", times=99, status=403, code="AccessDenied"), "expected a key that may GetObject"),
        (s3.Fault("GET", "SA-Med2D.zip", "answer", times=99, status=403, code="AccessDenied"), "expected a key that may GetObject"),
    ],
    ids=["busy", "cut", "denied", "directory denied"],
)
def test_a_fault_that_stays_is_none_of_an_image_and_ends_the_ingest(service, in_parts, tmp_path, monkeypatch, fault, message):
    address = uploaded(service, in_parts, tmp_path)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    service.faults.append(fault)
    raw_tree.refused(address, tmp_path / "out", message)


@needs_zip
@pytest.mark.parametrize("is_gone", [False, True], ids=["replaced", "gone"])
def test_a_part_that_is_another_while_it_is_read_ends_the_ingest_with_its_name(service, in_parts, tmp_path, is_gone):
    address = uploaded(service, in_parts, tmp_path)
    service.faults.append(s3.Fault("GET", "SA-Med2D.z02", "stall"))

    def replace() -> None:
        assert service.stalled.wait(60)
        if is_gone:
            service.client.delete_object(Bucket=s3.BUCKET, Key="team/store/SA-Med2D.z02")
        else:
            put(service, "SA-Med2D.z02", b"\0" * (in_parts / "SA-Med2D.z02").stat().st_size)
        service.released.set()

    other = threading.Thread(target=replace)
    other.start()
    found = "none; put it back" if is_gone else r'"[0-9a-f]{32}"; start again'
    address_of_part = re.escape(f"{service.url}/SA-Med2D.z02")
    with pytest.raises(InputError, match=rf'{address_of_part}: expected the object with tag "[0-9a-f]{{32}}", found {found}'):
        raw_tree.ingested(address, tmp_path / "out")
    other.join()


@needs_zip
def test_a_missing_part_is_named_before_any_work(service, in_parts, tmp_path):
    address = uploaded(service, in_parts, tmp_path)
    service.client.delete_object(Bucket=s3.BUCKET, Key="team/store/SA-Med2D.z02")
    message = r"s3://unimed-store/team/store/SA-Med2D\.zip: expected \d parts, \.z01 to \.z0\d and \.zip, found \.z01, \.z03"
    with pytest.raises(InputError, match=message):
        raw_tree.ingested(address, tmp_path / "out")
    assert not gets(service, "SA-Med2D.z01")


def test_a_broken_member_is_the_fault_of_one_image(service, folder, tmp_path):
    root = rezipped(folder, tmp_path / "archived")
    content = bytearray((root / "SA-Med2D.zip").read_bytes())
    at = content.rindex(f"images/{STEMS[0]}.png".encode()) - len("SAMed2Dv1/") - 46  # its entry in the directory
    content[at + 16 : at + 20] = b"abcd"  # its checksum
    (root / "SA-Med2D.zip").write_bytes(content)
    out = raw_tree.ingested(uploaded(service, root, tmp_path), tmp_path / "out")
    rows = raw_tree.quarantine(out)
    assert "with checksum 64636261, found" in rows["reason"][rows["kind"] == "image"].item()
    assert len(tables.Tables.read(out / "tables").samples) == 6


def test_nothing_is_fetched_behind_the_end_of_a_member_whatever_its_entry_says(service, folder, tmp_path):
    source = tmp_path / "folder"
    shutil.copytree(folder, source)
    (source / "SAMed2Dv1" / "other").write_bytes(np.random.default_rng(0).bytes(5 * 2**20))
    root = rezipped(source, tmp_path / "archived")
    content = bytearray((root / "SA-Med2D.zip").read_bytes())
    at = content.rindex(f"images/{STEMS[1]}.png".encode()) - len("SAMed2Dv1/") - 46  # its entry in the directory
    content[at + 20 : at + 24] = struct.pack("<L", 5 * 2**20)  # how many bytes it takes in the archive
    (root / "SA-Med2D.zip").write_bytes(content)
    out = raw_tree.ingested(uploaded(service, root, tmp_path), tmp_path / "out")
    assert len(tables.Tables.read(out / "tables").samples) == 7
    assert len(gets(service, "SA-Med2D.zip")) == 7 + 18 + 2 + 2


def test_a_directory_that_claims_more_than_there_is_is_refused(service, folder, tmp_path):
    root = rezipped(folder, tmp_path / "archived")
    (root / "SA-Med2D.zip").write_bytes(b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 3, 3, 2**32 - 2, 0, 0))
    with pytest.raises(InputError, match=r"s3://.*SA-Med2D\.zip: expected a directory of 3 entries, found it broken after 0"):
        raw_tree.ingested(uploaded(service, root, tmp_path), tmp_path / "out")


def test_two_archives_are_refused_unless_the_images_lie_there_unpacked(service, folder, whole, tmp_path):
    address = uploaded(service, rezipped(folder, tmp_path / "archived"), tmp_path)
    put(service, "other.zip", b"another")
    with pytest.raises(InputError, match=r"s3://.*: expected one archive, found SA-Med2D\.zip, other\.zip"):
        raw_tree.ingested(address, tmp_path / "out")
    uploaded(service, folder, tmp_path)
    assert tables.digest(raw_tree.ingested(address, tmp_path / "out")) == whole
    assert not gets(service, "SA-Med2D.zip")


def test_an_index_beside_the_archive_is_taken(service, folder, tmp_path):
    address = uploaded(service, rezipped(folder, tmp_path / "archived"), tmp_path)
    text = (folder / raw_tree.INDEX).read_bytes() + b"\n"
    put(service, raw_tree.INDEX, text)
    manifest = json.loads((raw_tree.ingested(address, tmp_path / "out") / "tables" / "manifest.json").read_text())
    assert manifest["index_sha256"] == hashlib.sha256(text).hexdigest()


def test_an_index_that_is_nowhere_is_missed(service, folder, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / raw_tree.INDEX).unlink()
    address = uploaded(service, rezipped(bare, tmp_path / "archived"), tmp_path)
    with pytest.raises(InputError, match=r"SAMed2D_v1\.json: expected a JSON file, found No such file"):
        raw_tree.ingested(address, tmp_path / "out")


SETTINGS = raw_tree.TOLERANT.model_copy(update={"max_pixels": 2**20})


def _ingested_in_a_job(address: Path, out: Path) -> str:
    with job.run(job.Job("ingest", "key")):
        ingest.write(address, out / "shards", out / "tables", seed=0, ingest=SETTINGS)
    return tables.digest(out)


@pytest.mark.parametrize("is_replaced", [False, True], ids=["the same archive", "another archive"])
def test_an_interrupted_ingest_goes_on_with_the_same_archive_and_starts_anew_with_another(service, tmp_path, monkeypatch, is_replaced):
    raw = tree.write(tmp_path / "tree", 27, 560, 560)  # nine images in each piece, of which eight are read at once
    by_image = lambda file: file.name  # noqa: E731 (an image before its masks)
    address = uploaded(service, cut(rezipped(raw, tmp_path / "archived", by_image), 3), tmp_path)
    monkeypatch.chdir(tmp_path)
    fault = s3.Fault("GET", "SA-Med2D.z02", "answer", times=9999, status=403, code="AccessDenied")
    service.faults.append(fault)
    with pytest.raises(InputError, match="expected a key that may GetObject"):
        _ingested_in_a_job(address, tmp_path / "out")
    assert list(tmp_path.glob("runs/*/checkpoints/1/rows/*/seal.json")), "shards were finished before the fault"
    fault.times = 0
    before = len(gets(service, "SA-Med2D.z01"))
    if is_replaced:
        Image.fromarray(np.zeros((560, 560), dtype=np.uint8)).save(raw / "SAMed2Dv1" / "images" / f"{tree.stem(0)}.png")
        uploaded(service, cut(rezipped(raw, tmp_path / "other", by_image), 3), tmp_path)
    made = _ingested_in_a_job(address, tmp_path / "out")
    whole = raw_tree.ingested(raw, tmp_path / "whole", SETTINGS)
    assert made == tables.digest(whole)
    asked = len(gets(service, "SA-Med2D.z01")) - before
    assert (asked >= before) == is_replaced
