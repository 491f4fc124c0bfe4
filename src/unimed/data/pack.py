"""One image with its masks, opened once: bytes, measures, run lengths and everything that is wrong with them."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unimed.data import images, masks, names, paths
from unimed.data.fingerprints import fingerprint
from unimed.data.names import ImageName, MaskName
from unimed.data.raw import PIXELS, Fault, Raw
from unimed.data.records import Exchange
from unimed.errors import InputError


@dataclass(frozen=True, slots=True)
class Job:
    """An image to open with its masks; `classes` are the class names of its data set by id."""

    name: ImageName
    path: str
    masks: tuple[str, ...]
    classes: dict[int, str]


@dataclass(frozen=True, slots=True)
class Packed:
    """What was found: bytes and rows of the tables, without the columns that only the whole collection decides."""

    name: ImageName
    content: bytes = b""
    sample: dict[str, Any] = field(default_factory=dict)
    masks: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def sample_id(self) -> str:
        """The image's stem: its id in all tables and its name in the shard."""
        return self.name.stem


def jobs(raw: Raw) -> tuple[list[Job], list[Fault]]:
    """A job for each image that a record names, in the order of the shards, and the images whose names cannot be used."""
    wanted: dict[str, dict[str, None]] = defaultdict(dict)
    for record in raw.records:
        wanted[record.image].update(dict.fromkeys(_instances(record.exchanges)))
    found: dict[str, Job] = {}
    faults: list[Fault] = []
    for path in sorted(wanted):
        try:
            name = names.image(path)
        except InputError as error:
            faults.append(Fault("image", path, path, str(error)))
            continue
        named = [mask for mask in wanted[path] if names.mask(mask).image == name.stem]
        listed = {names.stem(mask): mask for mask in (*named, *raw.index.get(path, []))}
        job = Job(name, path, tuple(listed[stem] for stem in sorted(listed)), raw.classes.get(name.dataset, {}))
        if (first := found.setdefault(name.stem, job)) is not job:
            faults.append(Fault("image", path, path, f"{path}: expected a name of its own, found that of {first.path}"))
    return sorted(found.values(), key=lambda job: (job.name.dataset, job.name.case, job.name.stem)), faults


def _instances(exchanges: Iterable[Exchange]) -> Iterator[str]:
    """Mask paths of well-formed instance masks; what is wrong with the others is said where the record is resolved."""
    for exchange in exchanges:
        for path in (*exchange.regions, *exchange.targets):
            try:
                if names.mask(path).instance is not None:
                    yield path
            except InputError:
                continue


def pack(job: Job, root: Path, max_pixels: int) -> Packed:
    """Open an image and its masks. Faults are part of the answer; masks of a faulty image are faulty too."""
    base = root / PIXELS
    try:
        content = paths.content(base, job.path)
        image = images.decode(content, job.path, max_pixels)
    except InputError as error:
        reason = f"expected a usable image {job.name.stem}, found it quarantined"
        orphans = [Fault("mask", names.stem(path), path, f"{path}: {reason}") for path in job.masks]
        return Packed(job.name, faults=[Fault("image", job.name.stem, job.path, str(error)), *orphans])
    sample = {
        "sample_id": job.name.stem,
        "sha256": hashlib.sha256(content).hexdigest(),
        "fingerprint": fingerprint(image),
        "height": image.height,
        "width": image.width,
        "modality": job.name.modality,
        "dataset": job.name.dataset,
        "case": job.name.case,
        "slice": job.name.slice,
    }
    packed = Packed(job.name, content, sample)
    for path in job.masks:
        try:
            packed.masks.append(_mask_row(job, path, base, max_pixels, (image.height, image.width)))
        except InputError as error:
            packed.faults.append(Fault("mask", names.stem(path), path, str(error)))
    return packed


def _mask_row(job: Job, path: str, base: Path, max_pixels: int, size: tuple[int, int]) -> dict[str, Any]:
    name = names.mask(path)
    if name.image != job.name.stem or name.instance is None:
        raise InputError(f"{path}: expected the mask of one instance on {job.name.stem}, found {name.stem!r}")
    mask = masks.from_png(paths.content(base, path), path, max_pixels)
    if mask.shape != size:
        raise InputError(f"{path}: expected {_size(size)} pixels (height x width) like its image, found {_size(mask.shape)}")
    return mask_row(name, _class_name(job, path, name), mask)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)


def _class_name(job: Job, path: str, name: MaskName) -> str:
    if name.class_id not in job.classes:
        known = ", ".join(str(number) for number in sorted(job.classes)) or "none"
        raise InputError(f"{path}: expected a class id that the mapping has for {job.name.dataset} ({known}), found {name.class_id}")
    return job.classes[name.class_id]


def mask_row(name: MaskName, class_name: str, mask: masks.Pixels) -> dict[str, Any]:
    """The row of masks.parquet for a mask."""
    return {
        "mask_id": name.stem,
        "sample_id": name.image,
        "class_id": name.class_id,
        "class_name": class_name,
        "instance": -1 if name.instance is None else name.instance,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "area": int(mask.sum()),
        "rle": masks.encode(mask),
    }
