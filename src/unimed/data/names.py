"""SA-Med2D-20M's file names as records: what an image or mask is can be read off its name.

Image `<modality_sub>--<dataset>--<case>--<axis>_<slice>.png`; mask `<image stem>--<class>_<instance>.png`; the union of a
class's instances `<image stem>--<class>_merged.png`. SA-Med2D-20M, Ye et al. 2023, arXiv:2311.11969.
"""

import hashlib
import re
from dataclasses import dataclass

from unimed.errors import InputError

MODALITIES = ("ct", "dermoscopy", "endoscopy", "fundus", "microscopy", "mr", "oct", "pet", "ultrasound", "x_ray")
"""What a name may start with, alone or followed by `_` and a sequence, e.g. `mr_t1`. No name of SA-Med2D's says microscopy or oct."""

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")
_IMAGE = re.compile(r"(?P<prefix>[A-Za-z0-9_]+)--(?P<dataset>[^/\\\s]+?)--(?P<case>[^/\\]+)--(?P<slice>[xyz]_\d+|2d_none)")
_MASK = re.compile(r"(?P<image>.+)--(?P<class_id>\d{4,})_(?P<instance>\d{3,}|merged)")
_OTHER = re.compile(r"(?:[^/\\\0]+/)*[^/\\\0]+\.(?:png|jpg|jpeg)", re.IGNORECASE)
_MOST_BYTES, _MOST_CHARACTERS = 200, 40
"""Of a name that is made here, which file systems must take with an ending; of what it keeps of another file name."""

_PATH = re.compile(r"(?P<folder>[a-z_]+)/(?P<stem>[^/\\\0]+)\.(?:png|jpg|jpeg)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageName:
    """What an image's file name says; `stem` serves as the sample's id."""

    stem: str
    modality: str
    dataset: str
    case: str
    slice: str


@dataclass(frozen=True, slots=True)
class MaskName:
    """What a mask's file name says; `instance` is None for the union of the class's instances."""

    stem: str
    image: str
    class_id: int
    instance: int | None


def with_ending(path: str) -> str:
    """The path with `.png` added where a record left the ending out."""
    return path if path.lower().endswith(IMAGE_ENDINGS) else f"{path}.png"


def stem(path: str) -> str:
    """The file name of a path with forward slashes, without its ending."""
    return path.rpartition("/")[2].rpartition(".")[0]


def modality(prefix: str) -> str | None:
    """The modality that a name's prefix stands for; None when it is none of MODALITIES."""
    return next((known for known in MODALITIES if f"{prefix.lower()}_".startswith(f"{known}_")), None)


def image(path: str) -> ImageName:
    """The parts of `images/<name>`. Raises InputError when the path or the name follows another grammar."""
    name = _stem(path, folders=("images",))
    parts = _IMAGE.fullmatch(name)
    if parts is None:
        raise InputError(f"{path}: expected <modality>--<dataset>--<case>--<axis>_<slice>, found {name!r}")
    kind = modality(parts["prefix"])
    if kind is None:
        raise InputError(f"{path}: expected a name that starts with one of {', '.join(MODALITIES)}, found {parts['prefix']!r}")
    return ImageName(stem=name, modality=kind, dataset=parts["dataset"], case=parts["case"], slice=parts["slice"])


def is_plain(path: str) -> bool:
    """Whether a path names a PNG or JPEG below where it is looked for, in characters that can be shown."""
    return _OTHER.fullmatch(path) is not None and not {".", ".."} & set(path.split("/")) and path.isprintable()


def named_after(path: str, modality: str, dataset: str) -> ImageName:
    """A name in this grammar for an image that has another, the same whenever it is asked for and for no other path.

    Its case is the image alone, since nothing says which images show one patient.
    Raises InputError for a modality that is none of MODALITIES.
    """
    if modality not in MODALITIES:
        raise InputError(f"{path}: expected a modality among {', '.join(MODALITIES)}, found {modality!r}")
    case = f"{_plain(stem(path))[:_MOST_CHARACTERS]}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    name = f"{modality}--{_plain(dataset)}--{case}--2d_none"
    if len(name.encode()) > _MOST_BYTES:
        raise InputError(f"{path}: expected a data set with a short name, found {dataset!r:.80}")
    return image(f"images/{name}.png")


def _plain(text: str) -> str:
    """The text in letters, digits, `_`, `.` and single `-`."""
    return re.sub("-{2,}", "-", re.sub(r"[^\w.-]+", "_", text)).strip("-.")


def mask(path: str) -> MaskName:
    """The parts of `masks/<name>` or `masks_merged/<name>`. Raises InputError when the path or the name follows another grammar."""
    name = _stem(path, folders=("masks", "masks_merged"))
    parts = _MASK.fullmatch(name)
    if parts is None:
        raise InputError(f"{path}: expected <image>--<class>_<instance> or <image>--<class>_merged, found {name!r}")
    instance = None if parts["instance"] == "merged" else int(parts["instance"])
    return MaskName(stem=name, image=parts["image"], class_id=int(parts["class_id"]), instance=instance)


def merged(image_stem: str, class_id: int) -> str:
    """The stem of the mask that unites all instances of a class on an image."""
    return f"{image_stem}--{class_id:04d}_merged"


def _stem(path: str, folders: tuple[str, ...]) -> str:
    parts = _PATH.fullmatch(path)
    if parts is None or parts["folder"] not in folders or parts["stem"] in (".", ".."):
        raise InputError(f"{path}: expected a path {' or '.join(f'{folder}/<name>.png' for folder in folders)}, found {path!r}")
    return parts["stem"]
