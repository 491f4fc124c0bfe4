"""A download in a ZIP archive, whole or in parts as `zip -s` makes them: read as the folder is, and no trick in it leads anywhere."""

import hashlib
import json
import shutil
import stat
import struct
import zipfile
from pathlib import Path

import pytest
import raw_tree
from archived import cut, fill, needs_zip, packed, rezipped, unpacked
from raw_tree import STEMS, mask_path

from unimed.data import archive, tables
from unimed.data.tables import Tables
from unimed.errors import InputError

A = f"SAMed2Dv1/images/{STEMS[0]}.png"
LIVER = f"SAMed2Dv1/{mask_path(STEMS[0], 'liver', 0)}"


@pytest.fixture
def folder(tmp_path) -> Path:
    return unpacked(tmp_path / "folder")


@needs_zip
@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("-s", "64k"), ("-s", "64k", "-0"), ("-fz",)], ids=["whole", "parts", "stored parts", "zip64"])
def test_an_archive_gives_the_tables_that_the_folder_gives(folder, tmp_path, options):
    root = packed(fill(folder), tmp_path / "archived", *options)
    assert (len(list(root.glob("SA-Med2D.z*"))) > 3) == ("-s" in options)
    one, two = (raw_tree.ingested(source, tmp_path / name) for source, name in ((folder, "one"), (root, "two")))
    assert len(Tables.read(two / "tables").samples) == 7
    assert tables.digest(one) == tables.digest(two)


@needs_zip
@pytest.mark.slow
def test_an_archive_cut_into_pieces_without_a_mark_is_read_too(folder, tmp_path):
    root = cut(packed(folder, tmp_path / "cut"), 3)
    assert tables.digest(raw_tree.ingested(root, tmp_path / "one")) == tables.digest(raw_tree.ingested(folder, tmp_path / "two"))


@needs_zip
@pytest.mark.slow
def test_a_missing_part_is_named_before_any_work(folder, tmp_path):
    root = packed(fill(folder), tmp_path / "archived", "-s", "64k")
    (root / "SA-Med2D.z02").unlink()
    with pytest.raises(InputError, match=r"SA-Med2D\.zip: expected \d parts, \.z01 to \.z0\d and \.zip, found \.z01, \.z03"):
        raw_tree.ingested(root, tmp_path / "out")


def _entry_at(content: bytes, name: str) -> int:
    """Where the directory's entry of a member begins."""
    return content.rindex(name.encode()) - 46


def edited(root: Path, name: str, offset: int, value: bytes) -> None:
    """Change bytes of a member's entry in the directory."""
    file = root / "SA-Med2D.zip"
    content = bytearray(file.read_bytes())
    at = _entry_at(bytes(content), name) + offset
    content[at : at + len(value)] = value
    file.write_bytes(content)


def add(root: Path, name: str, content: bytes, mode: int = 0) -> None:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    with zipfile.ZipFile(root / "SA-Med2D.zip", "a") as made:
        made.writestr(member, content)


def garbled(root: Path, name: str) -> None:
    file = root / "SA-Med2D.zip"
    content = bytearray(file.read_bytes())
    content[content.index(name.encode()) + len(name) + 20] ^= 0xFF
    file.write_bytes(content)


def link(root: Path) -> None:
    (root.parent / "secret.png").write_bytes(b"secret")
    add(root, A, b"../../../secret.png", stat.S_IFLNK | 0o777)


TRICKS = {
    "a link": (True, link, "expected a file, found a link"),
    "a member twice": (False, lambda root: add(root, A, b"another"), "expected one entry in the archive, found 2"),
    "more bytes than said": (False, lambda root: edited(root, A, 24, struct.pack("<L", 10)), "expected 10 bytes as its entry says, found"),
    "fewer bytes than said": (False, lambda root: edited(root, A, 24, struct.pack("<L", 10**6)), "expected 1000000 bytes with checksum"),
    "a bomb by its own word": (
        False,
        lambda root: edited(root, A, 24, struct.pack("<L", 2**31)),
        "expected at most 268435456 bytes, found",
    ),
    "another checksum": (False, lambda root: edited(root, A, 16, b"abcd"), "with checksum 64636261, found"),
    "a place of another member": (False, lambda root: edited(root, A, 42, struct.pack("<L", 0)), "expected its bytes at 0 of the archive"),
    "a place behind the end": (False, lambda root: edited(root, A, 42, struct.pack("<L", 2**31)), "expected its bytes at 2147483648 of"),
    "encrypted": (False, lambda root: edited(root, A, 8, b"\x01\x00"), "expected a stored or deflated member, found an encrypted one"),
    "another method": (False, lambda root: edited(root, A, 10, struct.pack("<H", 9)), "found one of method 9"),
    "broken data": (False, lambda root: garbled(root, A), "found"),
    "absent": (True, lambda root: None, "expected a file, found none in the archive"),
    "outside": (True, lambda root: add(root, f"../{A}", b"x"), "expected a file, found none in the archive"),
    "a name that is no UTF-8": (
        True,
        lambda root: add(root, A.replace("ct_00", "ct_öö"), b"x"),
        "expected a file, found none in the archive",
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_is_the_fault_of_one_image_and_reaches_nothing_else(folder, tmp_path, trick):
    is_absent, plant, reason = TRICKS[trick]
    if is_absent:
        (folder / A).unlink()
    root = rezipped(folder, tmp_path / "archived")
    plant(root)
    out = raw_tree.ingested(root, tmp_path / "out")
    rows = tables.read(out / "tables" / "quarantine.parquet", tables.QUARANTINE)
    [told] = rows[rows["kind"] == "image"]["reason"]
    assert reason in told and f"images/{STEMS[0]}.png: expected" in told
    made = Tables.read(out / "tables")
    assert len(made.samples) == 6 and STEMS[0] not in set(made.samples["sample_id"])
    assert {path.name for path in tmp_path.iterdir()} <= {"folder", "archived", "out", "secret.png"}


@pytest.mark.slow
def test_a_bomb_is_stopped_at_the_size_that_it_says(folder, tmp_path):
    (folder / A).unlink()
    root = rezipped(folder, tmp_path / "archived")
    with zipfile.ZipFile(root / "SA-Med2D.zip", "a", zipfile.ZIP_DEFLATED) as made:
        made.writestr(A, b"\0" * (archive.MOST_BYTES + 1))
    edited(root, A, 24, struct.pack("<L", 1000))
    out = raw_tree.ingested(root, tmp_path / "out")
    rows = tables.read(out / "tables" / "quarantine.parquet", tables.QUARANTINE)
    assert "expected 1000 bytes as its entry says, found more" in rows[rows["kind"] == "image"]["reason"].item()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "expected the last part of a ZIP archive, found no directory at its end"),
        (b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 3, 3, 138, 0, 0), "expected a directory of 3 entries, found it broken after 0"),
    ],
)
def test_what_is_no_archive_is_refused(folder, tmp_path, content, message):
    shutil.rmtree(folder / "SAMed2Dv1")
    (folder / "x.zip").write_bytes(content)
    with pytest.raises(InputError, match=message):
        raw_tree.ingested(folder, tmp_path / "out")


def test_a_truncated_archive_and_two_of_them_are_refused(folder, tmp_path):
    root = rezipped(folder, tmp_path / "archived")
    content = (root / "SA-Med2D.zip").read_bytes()
    (root / "SA-Med2D.zip").write_bytes(content[: len(content) - 400])
    with pytest.raises(InputError, match="found no directory at its end"):
        raw_tree.ingested(root, tmp_path / "out")
    (root / "other.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"expected one archive, found SA-Med2D\.zip, other\.zip"):
        raw_tree.ingested(root, tmp_path / "out")


def test_an_index_beside_the_archive_is_taken_and_one_that_is_nowhere_is_missed(folder, tmp_path):
    root = rezipped(folder, tmp_path / "archived")
    (root / "SAMed2Dv1").mkdir()
    shutil.copy(folder / raw_tree.INDEX, root / raw_tree.INDEX)
    raw_tree.edit(root, raw_tree.INDEX, lambda index: index[f"images/{STEMS[0]}.png"].clear())
    out = raw_tree.ingested(root, tmp_path / "out")
    told = json.loads((out / "tables" / "manifest.json").read_text())["index_sha256"]
    assert told == hashlib.sha256((root / raw_tree.INDEX).read_bytes()).hexdigest()
    (folder / raw_tree.MAPPING).unlink()
    with pytest.raises(InputError, match=r"SAMed2D_v1_class_mapping_id\.json: expected a JSON file, found No such file"):
        raw_tree.ingested(rezipped(folder, tmp_path / "unmapped"), tmp_path / "none")
