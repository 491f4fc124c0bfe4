"""Masks and images from bytes: run lengths equal the reference, odd modes become sensible RGB, broken bytes are refused."""

import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from unimed.data import images, masks
from unimed.errors import InputError


def png(pixels: np.ndarray, mode: str | None = None, kind: str = "PNG") -> bytes:
    image = Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_run_lengths_unpack_as_the_reference_unpacks_them():
    rng = np.random.default_rng(0)
    for share in (0, 0.02, 0.5, 0.98, 1):
        for _ in range(40):
            mask = rng.random(rng.integers(1, 70, 2)) < share
            packed = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
            assert masks.encode(mask) == packed["counts"].decode()
            assert (masks.decode(masks.encode(mask), *mask.shape) == coco.decode(packed).astype(bool)).all()


def test_a_long_run_with_a_negative_difference_unpacks():
    mask = np.zeros((600, 500), dtype=bool)
    mask[:, 3:400], mask[5, 450] = True, True
    assert (masks.decode(masks.encode(mask), 600, 500) == mask).all()


@pytest.mark.parametrize("rle", ["", "zzz~", "\x01\x02", "1" * 300, "é", "o" * 40, masks.encode(np.ones((3, 3), dtype=bool))])
def test_run_lengths_that_do_not_fill_the_mask_are_refused(rle):
    with pytest.raises(InputError, match=r"expected .*, found "):
        masks.decode(rle, 20, 10)


def test_a_union_covers_what_any_mask_covers_and_nothing_covers_nothing():
    left, right = np.zeros((2, 6, 5), dtype=bool)
    left[:, 0], right[:, 4] = True, True
    assert (masks.union([masks.encode(left), masks.encode(right)], 6, 5) == (left | right)).all()
    assert not masks.union([], 6, 5).any()


def pixels_of(content: bytes) -> np.ndarray:
    found = masks.from_png(content, "m.png", 1000)
    return masks.decode(found.rle, found.height, found.width)


@pytest.mark.parametrize("foreground", [1, 255])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_masks_of_either_convention_and_any_grey_mode_give_the_same_pixels(foreground, mode):
    true = np.zeros((7, 9), dtype=bool)
    true[2:5, 3:] = True
    assert pixels_of(png(true.astype(np.uint8) * foreground, mode)).tolist() == true.tolist()


def test_a_one_bit_mask_is_read():
    true = np.eye(9, dtype=bool)
    assert pixels_of(png(true)).tolist() == true.tolist()


def test_a_full_mask_is_not_taken_for_an_empty_one():
    assert pixels_of(png(np.full((4, 4), 255, np.uint8))).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_mask_anywhere_in_its_image_has_the_run_lengths_that_coco_has(mode):
    draw = np.random.default_rng(0)
    for _ in range(300):
        height, width = draw.integers(1, 9, 2)
        (top, bottom), (left, right) = sorted(draw.integers(0, height + 1, 2)), sorted(draw.integers(0, width + 1, 2))
        true = np.zeros((height, width), dtype=bool)
        true[top:bottom, left:right] = draw.random((bottom - top, right - left)) < 0.8
        if true.any():
            found = masks.from_png(png(true.astype(np.uint8), mode), "m.png", 1000)
            assert (found.rle, found.area) == (coco.encode(np.asfortranarray(true, dtype=np.uint8))["counts"].decode(), true.sum())


def test_a_mask_without_pixels_has_run_lengths_too():
    assert [masks.encode(np.zeros(shape, dtype=bool)) for shape in ((0, 3), (3, 0))] == ["0", "0"]


def test_a_coloured_mask_is_refused():
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[1, 1, 0] = 255
    with pytest.raises(InputError, match=r"m\.png: expected a mask with one channel, found colours"):
        masks.from_png(png(pixels), "m.png", 1000)


def test_sixteen_bit_grey_is_scaled_by_its_own_range():
    pixels = np.linspace(300, 4000, 64).reshape(8, 8).astype(np.uint16)
    seen = np.asarray(images.rgb(images.decode(png(pixels), "i.png", 1000)))
    assert (seen.min(), seen.max(), seen.shape) == (0, 255, (8, 8, 3))
    assert (np.diff(seen[..., 0].ravel().astype(int)) >= 0).all()


def test_flat_sixteen_bit_grey_is_black():
    seen = images.rgb(images.decode(png(np.full((3, 3), 900, np.uint16)), "i.png", 1000))
    assert not np.asarray(seen).any()


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG")]
)
def test_every_mode_is_seen_as_rgb(mode, kind):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:, 8:] = 255
    seen = np.asarray(images.rgb(images.decode(png(pixels, mode, kind), "i", 1000))).astype(int)
    assert seen.shape == (16, 16, 3)
    assert abs(seen - pixels[..., None].astype(int)).max() <= 2, "JPEG of two flat halves is off by rounding only"


def test_transparent_pixels_are_black_whatever_colour_they_hide():
    pixels = np.full((4, 4, 4), 200, np.uint8)
    pixels[..., 3], pixels[0, 0, 3] = 255, 0
    seen = np.asarray(images.rgb(images.decode(png(pixels), "i.png", 1000)))
    assert seen[0, 0].tolist() == [0, 0, 0] and seen[1, 1].tolist() == [200, 200, 200]


@pytest.mark.parametrize("keep", [0, 10, 60, 200])
def test_bytes_that_end_early_are_refused(keep):
    whole = png(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8))
    with pytest.raises(InputError, match=r"i\.png: expected a .*PNG or JPEG, found"):
        images.decode(whole[:keep], "i.png", 10_000)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_unpacked():
    with pytest.raises(InputError, match=r"i\.png: expected at most 1000 pixels, found 3000 x 2000"):
        images.decode(png(np.zeros((2000, 3000), np.uint8)), "i.png", 1000)


def test_a_file_of_another_kind_is_refused_without_an_address_in_the_reason():
    with pytest.raises(InputError, match=r"^i\.png: expected a PNG or JPEG, found bytes of neither$"):
        images.decode(b"GIF89a" + bytes(100), "i.png", 1000)
