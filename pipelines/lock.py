"""Entries of dvc.lock as DVC itself writes them, made where DVC is not: what a stage read, by which numbers, and what it made."""

from pathlib import Path
from typing import Any

import yaml

from pipelines.stages import CODE, Stage, param
from unimed import hashes, outputs
from unimed.errors import InputError

SCHEMA = "2.0"


def entry(stage: Stage, params: dict[str, Any], digests: dict[str, str], folder: Path, code: Path) -> dict[str, Any]:
    """The entry of a stage that ran in `folder` on the code in `code`; outputs appear once `digests`, a hash by path, names them."""
    paths = sorted([*stage.inputs.values(), *stage.code])
    deps = [facts(path, (code if path.startswith(CODE) else folder) / path, digests.get(path)) for path in paths]
    made = [facts(path, folder / path, digests[path]) for path in sorted(stage.outputs.values()) if path in digests]
    numbers = {key: param(params, key) for key in stage.params}
    return {"cmd": " ".join(stage.command), "deps": deps, "params": {"params.yaml": numbers}, **({"outs": made} if made else {})}


def facts(path: str, place: Path, digest: str | None = None) -> dict[str, Any]:
    """What dvc.lock says of a file or folder: `path`, hash, bytes and, of a folder, how many files."""
    count = {"nfiles": len(hashes.files(place))} if place.is_dir() else {}
    return {"path": path, "hash": "md5", "md5": digest or hashes.dvc_hash(place), "size": hashes.size(place), **count}


def write(file: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Write or replace entries of a dvc.lock, by stage; the others stay. The file is whole at any moment."""
    stages = (yaml.safe_load(file.read_text()) or {}).get("stages", {}) if file.exists() else {}
    text = yaml.safe_dump({"schema": SCHEMA, "stages": {**stages, **entries}}, sort_keys=False, width=10**6)
    partial = outputs.beside(file, ".partial")
    partial.write_text(text)
    outputs.place(partial, file)


def check(entry: Any, stage: str) -> dict[str, Any]:
    """The entry itself when it has the parts of one; raises `InputError` otherwise."""
    if not isinstance(entry, dict) or not {"cmd", "deps", "outs"} <= entry.keys():
        raise InputError(f"record of stage {stage}: expected an entry of dvc.lock with cmd, deps and outs, found another form")
    return entry
