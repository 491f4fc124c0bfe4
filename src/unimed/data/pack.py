"""One image with its masks and all that is said about it, opened once: bytes, rows of the tables and everything that is wrong."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unimed.data import images, links, masks, names, origins
from unimed.data.fingerprints import fingerprint
from unimed.data.names import ImageName, MaskName
from unimed.data.pixels import Pixels
from unimed.data.raw import Fault
from unimed.data.records import Exchange, Record
from unimed.errors import InputError


@dataclass(frozen=True, slots=True)
class Job:
    """An image that records name, to be opened with its masks; `listed` are those of the index, `twin` another path of its name."""

    path: str
    listed: tuple[str, ...]
    records: tuple[Record, ...]
    twin: str = ""


@dataclass(frozen=True, slots=True)
class Packed:
    """What was found: bytes and rows of the tables, without the columns that only the whole collection decides."""

    sample_id: str
    content: bytes = b""
    samples: list[dict[str, Any]] = field(default_factory=list)
    masks: list[dict[str, Any]] = field(default_factory=list)
    conversations: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Packer:
    """How jobs are done: where pixels come from, class names by data set and id, and the most pixels that are let in."""

    pixels: Pixels
    classes: Mapping[str, Mapping[int, str]]
    max_pixels: int

    def pack(self, jobs: Sequence[Job]) -> list[Packed]:
        """What each job finds, in order. Faults are part of the answer; masks and conversations of a faulty image are faulty too."""
        named = [_named(job) for job in jobs]
        wanted = dict.fromkeys(path for job, (name, paths) in zip(jobs, named, strict=True) if name for path in (job.path, *paths))
        found = dict(zip(wanted, self.pixels.read(list(wanted)), strict=True))
        return [self._pack(job, name, paths, found) for job, (name, paths) in zip(jobs, named, strict=True)]

    def _pack(self, job: Job, name: ImageName | None, paths: Sequence[str], found: Mapping[str, bytes | InputError]) -> Packed:
        try:
            name = name or _image_name(job)
            content = _content(found, job.path)
            image = images.decode(content, job.path, self.max_pixels)
        except InputError as error:
            return _unusable(job, name, paths, str(error))
        sample = {
            "sample_id": name.stem,
            "sha256": hashlib.sha256(content).hexdigest(),
            "fingerprint": fingerprint(image),
            "height": image.height,
            "width": image.width,
            "modality": name.modality,
            "dataset": name.dataset,
            "case": name.case,
            "slice": name.slice,
        }
        packed = Packed(name.stem, content, [sample])
        for path in paths:
            try:
                packed.masks.append(self._mask_row(path, _content(found, path), name, (image.height, image.width)))
            except InputError as error:
                packed.faults.append(Fault("mask", names.stem(path), path, str(error)))
        said = links.Links(name.stem, packed.masks, packed.faults)
        for record in job.records:
            try:
                packed.conversations.append(said.conversation(record))
            except InputError as error:
                packed.faults.append(Fault("conversation", record.conversation_id, record.file, str(error)))
        packed.masks.extend(said.unions.values())
        return packed

    def _mask_row(self, path: str, content: bytes, image: ImageName, size: tuple[int, int]) -> dict[str, Any]:
        name = names.mask(path)
        if name.image != image.stem or name.instance is None:
            raise InputError(f"{path}: expected the mask of one instance on {image.stem}, found {name.stem!r}")
        mask = masks.from_png(content, path, self.max_pixels)
        if (mask.height, mask.width) != size:
            found = f"{mask.height} x {mask.width}"
            raise InputError(f"{path}: expected {size[0]} x {size[1]} pixels (height x width) like its image, found {found}")
        return links.mask_row(name, self._class_name(path, name, image.dataset), mask)

    def _class_name(self, path: str, name: MaskName, dataset: str) -> str:
        classes = self.classes.get(dataset, {})
        if name.class_id not in classes:
            known = ", ".join(str(number) for number in sorted(classes)) or "none"
            raise InputError(f"{path}: expected a class id that the mapping has for {dataset} ({known}), found {name.class_id}")
        return classes[name.class_id]


def _named(job: Job) -> tuple[ImageName | None, list[str]]:
    """What an image's name says and the paths of its masks, by name; none for an image whose name cannot be used."""
    try:
        name = _image_name(job)
    except InputError:
        return None, []
    listed = {names.stem(path): path for path in (*_instances(job.records, name.stem), *job.listed)}
    return name, [listed[stem] for stem in sorted(listed)]


def _image_name(job: Job) -> ImageName:
    said = job.records[0]
    name = origins.image_name(job.path, said.origin, said.file)
    if job.twin:
        raise InputError(f"{job.path}: expected a name of its own, found that of {job.twin}")
    return name


def _instances(records: Sequence[Record], stem: str) -> Iterator[str]:
    """Mask paths of well-formed instance masks of the image; what is wrong with others is said where the record is resolved."""
    exchanges: list[Exchange] = [exchange for record in records for exchange in record.exchanges]
    for path in (path for exchange in exchanges for path in (*exchange.regions, *exchange.targets)):
        try:
            path = names.with_ending(path)
            name = names.mask(path)
        except InputError:
            continue
        if name.instance is not None and name.image == stem:
            yield path


def _content(found: Mapping[str, bytes | InputError], path: str) -> bytes:
    content = found[path]
    if isinstance(content, InputError):
        raise content
    return content


def _unusable(job: Job, name: ImageName | None, paths: Sequence[str], reason: str) -> Packed:
    """The faults of an image that cannot be used, and of all that hangs on it."""
    quarantined = f"expected a usable image {name.stem if name else job.path}, found it quarantined"
    faults = [Fault("image", name.stem if name else job.path, job.path, reason)]
    faults += [Fault("mask", names.stem(path), path, f"{path}: {quarantined}") for path in paths]
    for record in job.records:
        told = f"{record.where}: expected a usable image {job.path}, found it quarantined ({reason})"
        faults.append(Fault("conversation", record.conversation_id, record.file, told))
    return Packed(name.stem if name else job.path, faults=faults)
