"""Rows of glyphs in images: text is found, single marks and what a scanner shows are not taken for it."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import raw_tree
from PIL import Image, ImageDraw, ImageFont
from raw_tree import BOUNDS, STEMS

from unimed.data import contract, glyphs, phantoms
from unimed.data.tables import Tables
from unimed.errors import InputError

REAL = Path(__file__).parents[2] / "shared/data/sa-med2d-sample/SAMed2Dv1/images"
TEXTS = ("DOE^JANE", "SMITH, JOHN A.", "1954-03-17", "ID 0042917", "ST. MARY HOSPITAL", "14:32:07")
MOST = 3


def bars(*boxes: tuple[int, int, int, int], ink: int = 200) -> np.ndarray:
    """A dark image with upright bars: top, left, height, width."""
    pixels = np.full((60, 120), 20, np.uint8)
    for top, left, height, width in boxes:
        pixels[top : top + height, left : left + width] = ink
    return pixels


ROW = [(20, 10 + 8 * number, 12, 3) for number in range(6)]


def test_shapes_in_a_row_are_counted_in_either_contrast_and_anywhere():
    pixels = bars(*ROW)
    assert glyphs.longest_row(pixels) == glyphs.longest_row(255 - pixels) == 6
    assert glyphs.longest_row(np.roll(pixels, (25, 40), (0, 1))) == 6
    assert glyphs.longest_row(bars(*ROW, *[(40, 10 + 8 * number, 12, 3) for number in range(4)])) == 6, "the longest row counts"


@pytest.mark.parametrize(
    ("third", "longest"),
    [
        ((19, 26, 12, 3), 6),  # a pixel off the baseline
        ((17, 26, 12, 3), 3),  # three pixels
        ((24, 26, 8, 3), 6),  # a small letter among capitals: 8 of 12 pixels
        ((25, 26, 7, 3), 3),  # too small beside them
        ((20, 26, 4, 3), 3),  # no glyph at all
        ((20, 26, 12, 0), 3),  # nothing: the gap is 13 pixels, and 8 would do
    ],
)
def test_one_shape_that_does_not_fit_parts_a_row(third, longest):
    assert glyphs.longest_row(bars(*ROW[:2], third, *ROW[3:])) == longest


def test_shapes_of_other_contrast_are_not_of_a_row():
    pixels = bars(*ROW)
    pixels[:, 26:29] = np.where(pixels[:, 26:29] > 20, 150, 20)
    assert glyphs.longest_row(pixels) == 3, "130 levels beside 180 are less than three quarters"
    pixels[:, 26:29] = np.where(pixels[:, 26:29] > 20, 160, 20)
    assert glyphs.longest_row(pixels) == 6


def test_what_is_too_low_too_high_too_wide_or_faint_is_no_glyph():
    assert glyphs.longest_row(bars(*ROW, ink=58)) == 0, "38 levels above its surroundings"
    assert glyphs.longest_row(bars(*ROW, ink=72)) == 6
    assert glyphs.longest_row(bars(*[(20, 10 + 8 * number, 4, 3) for number in range(6)])) == 0
    assert glyphs.longest_row(bars(*[(20, 10 + 11 * number, 6, 8) for number in range(4)])) == 4
    assert glyphs.longest_row(bars(*[(20, 10 + 13 * number, 6, 10) for number in range(4)])) < 2
    tall = np.full((100, 120), 20, np.uint8)
    tall[10:75, 10:110:12] = 200
    assert glyphs.longest_row(tall) == 0, "65 pixels high"


def test_what_fades_into_its_surroundings_is_no_glyph():
    row = [(20, 10 + 12 * number, 14, 3) for number in range(6)]  # so far apart that what lies between is no stroke itself
    pixels = bars(*row, ink=62)
    for top, left, height, _ in row:
        pixels[top : top + height, left] = 75
    assert glyphs.longest_row(pixels) == 0, "of the pixels 42 levels above, a third are 50 above"
    for top, left, height, _ in row:
        pixels[top : top + height, left + 1] = 75
    assert glyphs.longest_row(pixels) == 6, "and now two thirds"


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (40, 3), (64, 64)])
def test_images_that_show_nothing_have_no_row(size):
    assert glyphs.longest_row(np.full(size, 7, np.uint8)) == 0


@cache
def pictures(kind: str) -> tuple[np.ndarray, ...]:
    if kind == "phantoms":
        return tuple(scene.image for scene in phantoms.scenes(20, 2, seed=5))
    return tuple(np.asarray(Image.open(file).convert("L")) for file in sorted(REAL.glob("*.png")))


def written(pixels: np.ndarray, text: str, size_px: int, ink: int, corner: str) -> np.ndarray | None:
    """The picture with a text in the corner; None when it does not fit."""
    image, font = Image.fromarray(pixels), ImageFont.load_default(size_px)
    draw = ImageDraw.Draw(image)
    _, _, width, height = draw.textbbox((0, 0), text, font=font)
    left, top = (4, 4) if corner == "top left" else (image.width - width - 4, image.height - height - 4)
    if width + 8 > image.width or height + 8 > image.height:
        return None
    draw.text((left, top), text, fill=ink, font=font)
    return np.asarray(image)


def found(kind: str, texts: tuple[str, ...], sizes_px: tuple[int, ...], ink: int) -> tuple[int, int]:
    """How many of the pictures with a text are found, and of how many; texts take turns in the corners."""
    corners = ("top left", "bottom right")
    asked = enumerate((one, text, size) for one in pictures(kind)[:6] for size in sizes_px for text in texts)
    drawn = [written(one, text, size, ink, corners[number % 2]) for number, (one, text, size) in asked]
    longest = [glyphs.longest_row(one) for one in drawn if one is not None]
    return sum(row > MOST for row in longest), len(longest)


real = pytest.mark.skipif(not REAL.exists(), reason="needs the real sample in ../shared/data beside the repository")


@pytest.mark.parametrize("kind", ["phantoms", pytest.param("slices", marks=real)])
def test_clean_pictures_and_single_markers_are_not_taken_for_text(kind):
    assert not [row for one in pictures(kind) if (row := glyphs.longest_row(one)) > MOST]
    assert found(kind, ("L", "R"), (16,), 255)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sizes_px", "ink", "share"),
    [
        ("phantoms", (10, 12, 16), 255, 0.7),
        pytest.param("slices", (10, 16, 24, 40), 255, 0.9, marks=real),
        pytest.param("slices", (10, 16, 24, 40), 180, 0.85, marks=real),
        pytest.param("slices", (10, 16, 24, 40), 120, 0.7, marks=real),
    ],
)
def test_most_names_dates_and_numbers_are_found(kind, sizes_px, ink, share):
    hits, of = found(kind, TEXTS, sizes_px, ink)
    assert of >= 60 and hits / of >= share, f"{hits} of {of}"


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """A download with five strokes like text in one of its images."""
    folder = tmp_path_factory.mktemp("data")
    root = raw_tree.write(folder / "raw")
    for number, stem in enumerate(STEMS):
        pixels = np.random.default_rng(number).integers(20, 40, raw_tree.size(stem), np.uint8)
        if number == 2:
            pixels[5:13, 2:24:5] = 255
        Image.fromarray(pixels).save(root / "SAMed2Dv1" / "images" / f"{stem}.png")
    raw_tree.ingested(root, folder)
    raw_tree.chosen(folder, "grounding")
    return folder


def validate(spoilt: Path, out: Path, **values) -> dict:
    bounds = BOUNDS.model_copy(update=values)
    contract.write(spoilt / "subsets" / "grounding", spoilt / "shards", out, bounds)
    return json.loads((out / "verdict.json").read_text())


@pytest.mark.slow
def test_the_contract_looks_for_text_only_when_asked(spoilt, tmp_path):
    told = {one["name"]: one["failed"] for one in validate(spoilt, tmp_path / "off")["expectations"]}
    assert "image_without_text" not in told
    assert STEMS[2] in set(Tables.read(tmp_path / "off").samples["sample_id"])
    with pytest.raises(InputError, match="expected names of promises .* found 'image_without_text'"):
        validate(spoilt, tmp_path / "named", severities={"image_without_text": "warn"})


@pytest.mark.slow
def test_an_image_with_text_costs_its_rows_or_ends_the_stage_or_is_told(spoilt, tmp_path):
    told = {one["name"]: one for one in validate(spoilt, tmp_path / "on", most_glyphs=MOST)["expectations"]}["image_without_text"]
    assert (told["failed"], told["examples"], told["severity"]) == (1, [STEMS[2]], "quarantine")
    assert STEMS[2] not in set(Tables.read(tmp_path / "on").samples["sample_id"])
    figure = (tmp_path / "on" / "report.html").read_text().partition("image_without_text")[2].partition("</figure>")[0]
    assert '<img src="data:image/png;base64,' in figure and STEMS[2] in figure
    with pytest.raises(InputError, match="image_without_text .no row of more than 3 shapes looks like text.* broken by 1 of 7 samples"):
        validate(spoilt, tmp_path / "stop", most_glyphs=MOST, severities={"image_without_text": "stop"})
    validate(spoilt, tmp_path / "warn", most_glyphs=MOST, severities={"image_without_text": "warn"})
    assert STEMS[2] in set(Tables.read(tmp_path / "warn").samples["sample_id"])
