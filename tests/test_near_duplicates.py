"""Near-duplicates: copies of an image are found however they were saved, patients who only look alike are not, and splits part neither."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import raw_tree
from PIL import Image, ImageEnhance

from conftest import ROOT
from unimed.data import duplicates, phantoms, sql, tables
from unimed.data.duplicates import DISTANCE, groups
from unimed.data.fingerprints import fingerprint
from unimed.data.tables import Tables

SAMPLE = ROOT.parent / "shared/data/sa-med2d-sample/SAMed2Dv1/images"
REAL = sorted(SAMPLE.glob("*.png")) if SAMPLE.is_dir() else []


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return Image.open(file)


COPIES = {
    "saved as JPEG": lambda image: as_jpeg(image, 75),
    "saved as poor JPEG": lambda image: as_jpeg(image, 50),
    "grey": lambda image: image.convert("L"),
    "with 16 bits": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.int32) * 257),
    "half as large": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "twice as large": lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image.convert("RGB")).enhance(1.3),
    "darker": lambda image: ImageEnhance.Brightness(image.convert("RGB")).enhance(0.7),
    "with less contrast": lambda image: ImageEnhance.Contrast(image.convert("RGB")).enhance(0.7),
    "with another gamma": lambda image: image.point([round(255 * (value / 255) ** 0.8) for value in range(256)] * len(image.getbands())),
}


def apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def written(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """A table of samples with these data sets, cases and fingerprints; ids are their numbers."""
    blank = dict.fromkeys(tables.SAMPLES.names, "") | {"height": 1, "width": 1, "offset": 0, "size": 1}
    told = [blank | {"sample_id": str(number), "dataset": row[0], "case": row[1], "fingerprint": row[2]} for number, row in enumerate(rows)]
    tables.write(tables.frame(told, tables.SAMPLES), tables.SAMPLES, folder / "samples.parquet", by=("sample_id",))
    return folder / "samples.parquet"


def found(folder: Path, rows: list[tuple[str, str, str]]) -> list[list[str]]:
    """The cases of every group, without their data set."""
    with sql.opened(samples=written(folder, rows)) as connection:
        return [[case for _, case in group] for group in groups(connection)]


def near(print_: str, *bits: int) -> str:
    """The fingerprint with some bits flipped."""
    return f"{int(print_, 16) ^ sum(1 << bit for bit in bits):064x}"


def drawn(seed: int) -> str:
    return np.random.default_rng(seed).bytes(32).hex()


@pytest.mark.skipif(not REAL, reason="the real sample is not beside the project")
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_real_image_has_nearly_its_fingerprint(how):
    for file in REAL:
        image = Image.open(file)
        assert apart(fingerprint(image), fingerprint(COPIES[how](image))) <= DISTANCE


@pytest.mark.parametrize("how", ["saved as JPEG", "grey", "brighter", "darker", "with less contrast", "with 16 bits"])
def test_most_copies_of_phantoms_have_nearly_their_fingerprints(how):
    """Phantoms are 96 pixels wide and noisy, which is harder than a real image: nine of ten is what is asked."""
    images = [Image.fromarray(scene.image) for scene in phantoms.scenes(40, 1, seed=1)]
    tied = [apart(fingerprint(image), fingerprint(COPIES[how](image))) <= DISTANCE for image in images]
    assert sum(tied) >= 36


def test_no_two_phantoms_are_taken_for_one_patient():
    prints = [bytes.fromhex(fingerprint(Image.fromarray(scene.image))) for scene in phantoms.scenes(640, 1, seed=0)]
    bits = np.unpackbits(np.frombuffer(b"".join(prints), np.uint8).reshape(640, 32), axis=1).astype(np.float32)
    distances = bits @ (1 - bits).T + (1 - bits) @ bits.T
    assert distances[~np.eye(640, dtype=bool)].min() > 2 * DISTANCE


@pytest.mark.skipif(not REAL, reason="the real sample is not beside the project")
def test_real_patients_are_far_apart():
    prints = [fingerprint(Image.open(file)) for file in REAL]
    assert min(apart(one, other) for one, other in itertools.combinations(prints, 2)) > 8 * DISTANCE


@pytest.mark.parametrize("radius", [0, 5, 20, 40])
def test_a_near_blank_image_has_no_fingerprint_and_ties_nothing(radius, tmp_path):
    y, x = np.mgrid[:256, :256]
    noise = np.random.default_rng(radius).normal(20, 6, (256, 256))
    image = Image.fromarray(np.clip(np.where(np.hypot(y - 128, x - 128) < radius, 140, 0) + noise, 0, 255).astype(np.uint8))
    assert fingerprint(image) == ""
    assert found(tmp_path, [("A", "1", ""), ("A", "2", "")]) == []


def test_the_fingerprint_of_a_ramp_is_the_one_worked_out_by_hand():
    """Grey rises from left to right: only horizontal waves see it, and those with an odd number of half waves fall off with it.

    The sum over the ramp of cos(pi k (2x + 1) / 128) is negative for odd k and 0 for even ones; the first wave is the mean.
    """
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(fingerprint(ramp)), np.uint8))
    grid = np.zeros(256, int)
    grid[np.arange(256) * 37 % 256] = bits
    assert grid[0] == 1 and not grid[1:16:2].any()
    falling = fingerprint(Image.fromarray(np.asarray(ramp)[:, ::-1]))
    grid[np.arange(256) * 37 % 256] = np.unpackbits(np.frombuffer(bytes.fromhex(falling), np.uint8))
    assert grid[0] == 1 and grid[1:16:2].all()


@pytest.mark.parametrize("seed", range(8))
def test_copies_up_to_the_distance_are_found_and_none_beyond_wherever_the_bits_lie(seed, tmp_path):
    rng = np.random.default_rng(seed)
    rows = [("A", "origin", drawn(seed))]
    for count in range(1, 2 * DISTANCE):
        rows.append(("B", f"{count:02d}", near(rows[0][2], *rng.choice(256, count, replace=False).tolist())))
    with sql.opened(samples=written(tmp_path, rows)) as connection:
        duplicates.find(connection, apart='dataset, "case"')
        pairs = set(connection.sql("FROM near_duplicates").fetchall())
    by_hand = {
        tuple(sorted((str(one), str(other))))
        for one, other in itertools.combinations(range(len(rows)), 2)
        if apart(rows[one][2], rows[other][2]) <= DISTANCE
    }
    assert pairs == by_hand and len(by_hand) >= DISTANCE


@pytest.mark.parametrize("band", range(DISTANCE + 1))
def test_a_copy_that_keeps_one_band_alone_is_found_by_it(band, tmp_path):
    """One bit is flipped in each of the other bands, the nearest to this one: 256 bits fall into 13 bands of 19 or 20."""
    firsts = [256 * number // 13 for number in range(14)]
    flipped = [firsts[other + 1] - 1 if other < band else firsts[other] for other in range(13) if other != band]
    assert found(tmp_path, [("A", "1", drawn(1)), ("A", "2", near(drawn(1), *(255 - bit for bit in flipped)))]) == [["1", "2"]]


@pytest.mark.parametrize("first", range(0, 256 - DISTANCE, 7))
def test_copies_whose_bits_lie_side_by_side_are_found_too(first, tmp_path):
    assert found(tmp_path, [("A", "1", drawn(1)), ("A", "2", near(drawn(1), *range(first, first + DISTANCE)))]) == [["1", "2"]]
    assert found(tmp_path, [("A", "1", drawn(1)), ("A", "2", near(drawn(1), *range(first, first + DISTANCE + 1)))]) == []


@pytest.mark.parametrize("kinds", [1, 2, 3, 40])
def test_of_crowds_that_look_alike_all_pairs_of_different_kinds_are_found_and_no_other(kinds, tmp_path):
    """Eight crowds of images a few bits from one another; most images are of the first kind."""
    rng = np.random.default_rng(kinds)
    crowds, kind = rng.integers(0, 8, 160), rng.integers(-kinds, kinds, 160).clip(0)
    rows = [
        (f"{one}", "case", near(drawn(100 + int(crowd)), *rng.choice(256, rng.integers(0, 12), replace=False).tolist()))
        for one, crowd in zip(kind, crowds, strict=True)
    ]
    with sql.opened(samples=written(tmp_path, [*rows, ("blank", "case", "")])) as connection:
        duplicates.find(connection, apart="dataset")
        pairs = connection.sql("FROM near_duplicates").fetchall()
    by_hand = {
        tuple(sorted((str(one), str(other))))
        for one, other in itertools.combinations(range(len(rows)), 2)
        if rows[one][0] != rows[other][0] and apart(rows[one][2], rows[other][2]) <= DISTANCE
    }
    assert pairs == sorted(by_hand) and (kinds == 1) == (not by_hand)


def test_cases_are_tied_over_others_and_slices_of_one_case_are_no_pair(tmp_path):
    a, b = drawn(1), drawn(2)
    chain = [("A", f"{step}", near(a, *range(10 * step))) for step in range(4)]
    own = [("A", "alone", b), ("A", "alone", near(b, 3)), ("B", "far", drawn(3))]
    assert found(tmp_path, [*chain, *own]) == [["0", "1", "2", "3"]]


def test_the_same_case_name_in_two_data_sets_is_two_cases(tmp_path):
    assert found(tmp_path, [("A", "1", drawn(1)), ("B", "1", drawn(1))]) == [["1", "1"]]


def test_what_too_many_images_share_is_passed_over_and_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(duplicates, "MOST", 5)
    alike = [("A", f"{number}", drawn(1)) for number in range(6)]
    assert found(tmp_path, [*alike, ("B", "7", drawn(2)), ("B", "8", near(drawn(2), 0))]) == [["7", "8"]]
    assert found(tmp_path, alike[:5]) == [["0", "1", "2", "3", "4"]], "five are not too many"
    assert caplog.text.count("1 parts of fingerprints are those of over 5 images") == DISTANCE + 1


def test_ingest_notes_the_fingerprint_of_every_image(tmp_path):
    out = raw_tree.ingested(raw_tree.write(tmp_path / "raw"), tmp_path)
    rows = Tables.read(out / "tables").samples
    assert {row["sample_id"]: row["fingerprint"] for row in rows.to_dict("records")} == {
        stem: fingerprint(Image.open(tmp_path / f"raw/SAMed2Dv1/images/{stem}.png")) for stem in raw_tree.STEMS
    }


@pytest.mark.parametrize("seed", range(4))
def test_ingest_puts_copies_of_different_cases_into_one_split(seed, tmp_path):
    raw = raw_tree.write(tmp_path / "raw")
    one, copy = raw_tree.STEMS[1], raw_tree.BARE
    images = raw / "SAMed2Dv1/images"
    (images / f"{copy}.png").write_bytes((images / f"{one}.png").read_bytes())
    samples = Tables.read(raw_tree.ingested(raw, tmp_path / "out", seed=seed) / "tables").samples.set_index("sample_id")
    assert samples.loc[one, "split"] == samples.loc[copy, "split"] and samples.loc[one, "case"] != samples.loc[copy, "case"]
