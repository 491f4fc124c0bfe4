"""Faults of images and of masks, each as the promise it breaks and how it is put into a subset; gives the id of the row."""

import numpy as np
import planted
from PIL import Image, ImageDraw, ImageFont
from planted import Subset


def points(turn: dict) -> bool:
    """Whether a turn points at one mask."""
    return len(turn["targets"]) == 1 and len(turn["targets"][0]) == 1


def points_at_nothing(turn: dict) -> bool:
    return not turn["targets"] and not turn["regions"]


def marks(turn: dict) -> bool:
    """Whether a turn asks about one region."""
    return len(turn["regions"]) == 1


def a_sample(found: Subset, place: int = 3) -> str:
    return str(found.tables.samples["sample_id"].iloc[place])


def a_mask(found: Subset) -> str:
    """A mask that is a whole class of its image."""
    return found.turn(points)[1]["targets"][0][0]


def spoil_shard(found: Subset, key: str) -> str:
    row = found.tables.samples.set_index("sample_id").loc[key]
    with (found.shards / str(row["shard"])).open("r+b") as shard:
        shard.seek(int(row["offset"]) + 8 + 8 + 5)  # a byte of the header that is no length and no type
        shard.write(b"\xff")
    return key


def size_of(found: Subset, key: str) -> tuple[int, int]:
    row = found.tables.samples.set_index("sample_id").loc[key]
    return int(row["width"]), int(row["height"])


def noise(found: Subset, key: str) -> Image.Image:
    width, height = size_of(found, key)
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def two_values(found: Subset, key: str) -> Image.Image:
    return noise(found, key).convert("L").point(lambda value: 255 * (value > 127))


def written_on(found: Subset, key: str) -> str:
    """The image with a patient's name in a corner."""
    image = found.image(key).convert("L")
    ImageDraw.Draw(image).text((3, 3), "SMITH JOHN", fill=255, font=ImageFont.load_default(10))
    return found.pack(key, image)


def truncated(found: Subset, key: str) -> str:
    return found.pack(key, planted.encoded(noise(found, key))[:-200])


def checkered(found: Subset, key: str) -> str:
    pixels = np.zeros(found.mask(key).shape, dtype=bool)
    pixels[::2, ::2] = True
    return found.draw(key, pixels)


def tiny(found: Subset, key: str) -> str:
    pixels = np.zeros_like(found.mask(key))
    pixels[5, 5:7] = True
    return found.draw(key, pixels)


def turned(found: Subset, key: str) -> str:
    """The mask lies on its side, as if rows were columns."""
    row = found.tables.masks.set_index("mask_id").loc[key]
    found.draw(key, found.mask(key).T)
    return found.put("masks", key, height=int(row["width"]), width=int(row["height"]))


def oblong(found: Subset) -> str:
    """A mask of an image that is not square."""
    rows = found.tables.masks
    return str(rows["mask_id"][rows["height"] != rows["width"]].iloc[0])


def other_split(found: Subset) -> str:
    samples = found.tables.samples
    key = str(samples["sample_id"][samples["split"] == "train"].iloc[0])
    return found.put("samples", key, split="test")


def copied_across_splits(found: Subset) -> str:
    """An image that is that of a case in another split, but for two bits of its fingerprint; gives the other one."""
    samples = found.tables.samples
    one, other = (samples[samples["split"] == split].iloc[0] for split in ("train", "test"))
    bits = int(str(one["fingerprint"]), 16) ^ 0b11
    found.put("samples", str(one["sample_id"]), fingerprint=f"{bits:064x}")
    return found.put("samples", str(other["sample_id"]), fingerprint=str(one["fingerprint"]))


IMAGES = {
    "listed twice": ("image_ids_unique", lambda found: found.double("samples")),
    "other bytes in the shard": ("image_bytes", lambda found: spoil_shard(found, a_sample(found))),
    "shard outside its folder": ("image_bytes", lambda found: found.put("samples", a_sample(found), shard="../shard-000000.tar")),
    "shard that is missing": ("image_bytes", lambda found: found.put("samples", a_sample(found), shard="shard-000099.tar")),
    "case in two splits": ("case_in_one_split", other_split),
    "image of another case in another split": ("image_in_one_split", copied_across_splits),
    "image cut short": ("image_decodes", lambda found: truncated(found, a_sample(found))),
    "text for an image": ("image_decodes", lambda found: found.pack(a_sample(found), b"no image")),
    "other size": ("image_size", lambda found: found.pack(a_sample(found), Image.effect_noise((30, 40), 50))),
    "colours of print": (
        "image_channels",
        lambda found: found.pack(a_sample(found), noise(found, a_sample(found)).convert("CMYK"), "JPEG"),
    ),
    "mask for an image": ("image_has_content", lambda found: found.pack(a_sample(found), two_values(found, a_sample(found)))),
    "blank image": ("image_has_content", lambda found: found.pack(a_sample(found), Image.new("L", size_of(found, a_sample(found)), 7))),
    "patient's name in the image": ("image_without_text", lambda found: written_on(found, a_sample(found))),
    "slice of another name": ("image_name", lambda found: found.put("samples", a_sample(found), slice="z_0099")),
    "case of another name": ("image_name", lambda found: found.put("samples", a_sample(found), case="case_99999")),
    "modality of another name": ("image_name", lambda found: found.put("samples", a_sample(found), modality="x_ray")),
    "unknown modality": ("modality_known", lambda found: found.put("samples", a_sample(found), modality="sonar")),
    "unknown licence": ("licence_known", lambda found: found.put("samples", a_sample(found), licence="unknown")),
}
MASKS = {
    "listed twice": ("mask_ids_unique", lambda found: found.double("masks")),
    "no image": ("mask_has_image", lambda found: found.put("masks", a_mask(found), sample_id="nobody")),
    "class of another id": ("mask_name", lambda found: found.put("masks", a_mask(found), class_id=77)),
    "other instance": ("mask_name", lambda found: found.put("masks", a_mask(found), instance=5)),
    "runs cut short": ("mask_unpacks", lambda found: found.put("masks", a_mask(found), rle="1234")),
    "turned": ("mask_size", lambda found: turned(found, oblong(found))),
    "empty": ("mask_not_empty", lambda found: found.draw(a_mask(found), np.zeros_like(found.mask(a_mask(found))))),
    "other area": ("mask_area_noted", lambda found: found.put("masks", a_mask(found), area=1)),
    "two pixels": ("mask_not_tiny", lambda found: tiny(found, a_mask(found))),
    "inverted": ("mask_not_inverted", lambda found: found.draw(a_mask(found), np.ones_like(found.mask(a_mask(found))))),
    "noise": ("mask_not_scattered", lambda found: checkered(found, a_mask(found))),
}
