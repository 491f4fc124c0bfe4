"""Conversations joined to the masks they name; `masks_merged/`, which no download ships, stands for all instances of a class."""

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from unimed.data import masks, names
from unimed.data.names import MaskName
from unimed.data.raw import Fault
from unimed.data.records import Exchange, Record
from unimed.errors import InputError


class Links:
    """Which masks of one image can be used, and why the others cannot; `unions` are masks that conversations made necessary."""

    def __init__(self, sample_id: str, rows: Iterable[dict[str, Any]], faults: Iterable[Fault]) -> None:
        self.sample_id = sample_id
        self.masks = {row["mask_id"]: row for row in rows}
        self.reasons = {fault.name: fault.reason for fault in faults}
        self.unions: dict[str, dict[str, Any]] = {}
        self._instances: dict[int, list[str]] = defaultdict(list)
        for mask_id in sorted({*self.masks, *self.reasons}):
            self._note(mask_id)

    def _note(self, mask_id: str) -> None:
        try:
            name = names.mask(f"masks/{mask_id}.png")
        except InputError:
            return
        if name.image == self.sample_id:
            self._instances[name.class_id].append(mask_id)

    def conversation(self, record: Record) -> dict[str, Any]:
        """The row of conversations.parquet. Raises InputError when one of its masks cannot be used."""
        turns = [self._turn(exchange, record.where) for exchange in record.exchanges]
        return {
            "conversation_id": record.conversation_id,
            "sample_id": self.sample_id,
            "task": record.task,
            "question_type": record.question_type,
            "answer_type": record.answer_type,
            "source": record.source,
            "turns": json.dumps(turns, ensure_ascii=False),
            "options": json.dumps(record.options, ensure_ascii=False) if record.options else "",
            "solution": record.solution,
            "rationale": record.rationale,
        }

    def _turn(self, exchange: Exchange, where: str) -> dict[str, Any]:
        return {
            "question": exchange.question,
            "answer": exchange.answer,
            "regions": [self._region(self._resolve(path, where)) for path in exchange.regions],
            "targets": [self._resolve(path, where) for path in exchange.targets],
        }

    def _resolve(self, path: str, where: str) -> list[str]:
        """Ids of the masks whose union a path names."""
        try:
            name = names.mask(names.with_ending(path))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if name.image != self.sample_id:
            raise InputError(f"{where}: expected a mask of {self.sample_id}, found {path}")
        mask_ids = self._instances[name.class_id] if name.instance is None else [name.stem]
        if not mask_ids:
            raise InputError(f"{where}: expected masks of class {name.class_id} that make up {path}, found none")
        for mask_id in mask_ids:
            if mask_id not in self.masks:
                reason = self.reasons.get(mask_id, "missing")
                raise InputError(f"{where}: expected a usable mask {mask_id}, found it quarantined ({reason})")
        return list(mask_ids)

    def _region(self, mask_ids: list[str]) -> str:
        """The one id a region has; the union of several instances becomes a mask of its own."""
        if len(mask_ids) == 1:
            return mask_ids[0]
        first = self.masks[mask_ids[0]]
        name = names.mask(f"masks_merged/{names.merged(self.sample_id, first['class_id'])}.png")
        if name.stem not in self.unions:
            covered = masks.union([self.masks[mask_id]["rle"] for mask_id in mask_ids], first["height"], first["width"])
            self.unions[name.stem] = mask_row(name, first["class_name"], masks.runs(covered))
        return name.stem


def mask_row(name: MaskName, class_name: str, mask: masks.Runs) -> dict[str, Any]:
    """The row of masks.parquet for a mask."""
    return {
        "mask_id": name.stem,
        "sample_id": name.image,
        "class_id": name.class_id,
        "class_name": class_name,
        "instance": -1 if name.instance is None else name.instance,
        "height": mask.height,
        "width": mask.width,
        "area": mask.area,
        "rle": mask.rle,
    }
