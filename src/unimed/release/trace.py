"""What a release was made of, as a tree: parts, the runs that made them, data, and where those come from; re-hashed on demand."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unimed import hashes, recorder
from unimed.data.streamed import load
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.release import lineage
from unimed.release.closure import SCHEME, Kept, Registry, WorkingFolder, handed, opened
from unimed.release.manifest import MANIFEST, SIGNATURE, read
from unimed.release.parts import BASE, PARENTS, RELEASE, in_order
from unimed.release.tree import NOT_HERE, Node, hashed, missing
from unimed.settings import Tracking


@dataclass(frozen=True)
class _Subject:
    """What is traced: a release, or a model with its parents in place of one."""

    name: str
    facts: Mapping[str, str]
    files: tuple[Node, ...]
    parts: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, str]
    licences: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    fault: str = ""


def trace(target: str, settings: Tracking, root: Path, verify: bool = False) -> Node:
    """The tree of a release or model, named as models:/NAME@ALIAS, models:/NAME/NUMBER or a folder; `root` is the working folder.

    With `verify` everything that is here is hashed, registered parts where the registry keeps them. Raises InputError for a target
    that is neither release nor model.
    """
    working = WorkingFolder(root)
    if not target.startswith(SCHEME):
        return _tree(_subject(Path(target), target, {}, verify), working, working, verify)
    with opened(settings, f"tell about {target}") as (client, cache):
        version, folder = handed(client, target, cache / "subject")
        name = f"{version.name} version {version.version}"
        numbers = {key: value for key, value in version.tags.items() if key.startswith("unimed-")}
        subject = _subject(folder, name, version.tags, verify)
        return _tree(subject, Registry(client, cache, working, numbers), working, verify)


def _subject(folder: Path, name: str, tags: Mapping[str, str], verify: bool) -> _Subject:
    if (folder / MANIFEST).is_file():
        return _release(folder, name, tags, verify)
    if (folder / artifacts.MANIFEST).is_file():
        return _model(folder, name, verify)
    raise InputError(f"{name}: expected a folder with {MANIFEST} or {artifacts.MANIFEST}, or {SCHEME}{RELEASE}@ALIAS, found neither")


def _release(folder: Path, name: str, tags: Mapping[str, str], verify: bool) -> _Subject:
    content, digest = read(folder), artifacts.sha256(folder / MANIFEST)
    noted = tags.get(recorder.SEALED, digest)
    fault = f"{name}: expected {MANIFEST} with sha256 {noted}, found {digest}" if verify and digest != noted else ""
    facts = {"manifest": digest, "git": content["git_revision"] or NOT_HERE, "gate": content["gate"]["sha256"]}
    files = tuple(_file(folder / file, expected, verify) for file, expected in sorted(content["files"].items()))
    signature = Node(SIGNATURE) if (folder / SIGNATURE).is_file() else missing(SIGNATURE, {})
    return _Subject(name, facts, (*files, signature), content["parts"], content["data"], content["licences"], fault)


def _model(folder: Path, name: str, verify: bool) -> _Subject:
    """A model as the release of itself and its parents."""
    content = load(folder / artifacts.MANIFEST)
    own = folder.resolve().name if folder.resolve().name in PARENTS else ""
    parents = {PARENTS.get(own, {}).get(key, key): {"manifest_sha256": one["sha256"]} for key, one in content["parents"].items()}
    digest = artifacts.sha256(folder / artifacts.MANIFEST)
    fault = _broken(folder) if verify else ""
    itself = {own: {"manifest_sha256": digest, "dvc": hashes.dvc_hash(folder)}} if own else {}
    return _Subject(name, {"manifest": digest}, (), parents | itself, content.get("data", {}), fault=fault)


def _broken(folder: Path) -> str:
    """Why a model folder does not match its own manifest."""
    try:
        artifacts.verify(folder)
    except InputError as error:
        return str(error).replace(f"{folder.resolve()}/", "").replace(f"{folder}/", "")
    return ""


def _file(path: Path, expected: str, verify: bool) -> Node:
    if not path.is_file():
        return missing(path.name, {"sha256": expected}, f"{path.name}: expected a file, found none" if verify else "")
    found = artifacts.sha256(path) if verify else expected
    fault = f"{path.name}: expected sha256 {expected}, found {found}" if found != expected else ""
    return hashed(path.name, {"sha256": expected}, fault, verify)


def _tree(subject: _Subject, places: WorkingFolder | Registry, working: WorkingFolder, verify: bool) -> Node:
    parts = [_part(name, record, subject, places, verify) for name, record in in_order(subject.parts)]
    files = [Node("files", children=subject.files)] if subject.files else []
    data = lineage.data(subject.data, subject.licences, working, verify)
    return hashed(subject.name, subject.facts, subject.fault, verify, (*files, *parts, data))


def _part(name: str, record: Mapping[str, Any], subject: _Subject, places: WorkingFolder | Registry, verify: bool) -> Node:
    kept, expected = places.part(name, record, verify), record["manifest_sha256"]
    facts = {"kept as": kept.place, "manifest": expected}
    if kept.folder is None:
        has_to_be = verify and isinstance(places, Registry) and name != BASE
        return missing(name, facts, f"{name}: expected {kept.place} in the registry, found it gone" if has_to_be else "")
    found = artifacts.sha256(kept.folder / artifacts.MANIFEST)
    if found != expected:
        return hashed(name, facts, f"{name}: expected {kept.place} with manifest sha256 {expected}, found {found}", verify)
    fault = _mismatch(name, kept.folder, record, subject) if verify else ""
    return hashed(name, facts, fault, verify, () if name == BASE else (_run(kept), *_taught(name, kept.folder, subject)))


def _mismatch(name: str, folder: Path, record: Mapping[str, Any], subject: _Subject) -> str:
    """Why the files of a part, or what they say they were made from, do not fit the release."""
    if fault := _broken(folder):
        return f"{name}: {fault}"
    if "dvc" in record and (found := hashes.dvc_hash(folder)) != record["dvc"]:
        return f"{name}: expected a folder with the hash {record['dvc']}, found {found}"
    for key, one in load(folder / artifacts.MANIFEST)["parents"].items():
        parent = PARENTS.get(name, {}).get(key, key)
        if parent in subject.parts and one["sha256"] != (expected := subject.parts[parent]["manifest_sha256"]):
            return f"{name}: expected its parent {parent} to have manifest sha256 {expected}, found {one['sha256']}"
    return ""


def _run(kept: Kept) -> Node:
    """The run that made a part, with its params: as MLflow has it, else as dvc.lock has it."""
    tags = {"stage": "stage", "recipe": "recipe_key", "git": "git_revision", "image": "image"}
    facts = {word: kept.tags.get(tag) or NOT_HERE for word, tag in tags.items()}
    numbers = Node("params", dict(sorted(kept.params.items()))) if kept.params else missing("params", {})
    return Node("run", {"id": kept.run, **facts} if kept.run else {}, "" if kept.run else NOT_HERE, children=(numbers,))


def _taught(name: str, folder: Path, subject: _Subject) -> Iterator[Node]:
    """The data that a part says it was trained on; a fault where those are not the release's."""
    data = load(folder / artifacts.MANIFEST).get("data") or {}
    if not data:
        yield missing("trained on", {})
        return
    wrong = [task for task, digest in sorted(data.items()) if subject.data.get(task, digest) != digest]
    told = f"{name}: expected it to be trained on {wrong[0]} {subject.data[wrong[0]]}, found {data[wrong[0]]}" if wrong else ""
    yield hashed("trained on", dict(sorted(data.items())), told, verify=False)
