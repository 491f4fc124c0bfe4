"""A release as the registry holds it: found, and what it names verified before anybody relies on it."""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from unimed import mlflow_server
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.recorder import SEALED
from unimed.release import journal, scores
from unimed.release.comparison import Champion
from unimed.release.manifest import MANIFEST, checked
from unimed.release.parts import RELEASE
from unimed.release.register import ALIAS
from unimed.settings import Gate, Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Registered:
    """A release: its version in the registry and the release.json of that version, which has the hash in its tag."""

    version: "ModelVersion"
    manifest: dict[str, Any]

    @property
    def number(self) -> str:
        """The number of the version."""
        return str(self.version.version)

    @property
    def gate(self) -> Gate:
        """The bounds it was let through by. Raises InputError when it names none."""
        try:
            return Gate.model_validate(self.manifest["gate"].get("bounds"))
        except ValidationError as error:
            fault = f"{error.error_count()} at fault, the first: {error.errors()[0]['msg']}"
            raise InputError(f"{_name(self.number)}: expected the bounds of a gate in its release.json, found {fault}") from error


def find(client: "MlflowClient", number: str) -> Registered:
    """The release of that version. Raises InputError when there is none, or its release.json is another than its tag says."""
    version = _version(client, RELEASE, number, f"{RELEASE}: expected a version {number}")
    content = _download(client, version, MANIFEST)
    if (found := hashlib.sha256(content).hexdigest()) != version.tags.get(SEALED):
        raise InputError(f"{_name(number)}: expected a release.json with the sha256 of its tag {SEALED}, found {found}")
    return Registered(version, checked(json.loads(content), f"{_name(number)}: {MANIFEST}"))


def kept(client: "MlflowClient", release: journal.Release) -> Registered:
    """The release of a journal's entry. Raises InputError when it was deleted since, or is another."""
    if not journal.is_there(client, release):
        raise InputError(f"{_name(release.version)}: expected it in the registry as the journal has it, found it deleted")
    return find(client, release.version)


def scored(client: "MlflowClient", release: Registered) -> Champion:
    """The release as one to be compared with: its scores, with the hash that its release.json gives them."""
    expected = release.manifest.get("files", {}).get(scores.SCORES)
    if not expected:
        raise InputError(f"{_name(release.number)}: expected {scores.SCORES} among the files of its release.json, found none")
    content = _download(client, release.version, scores.SCORES)
    if (found := hashlib.sha256(content).hexdigest()) != expected:
        raise InputError(f"{_name(release.number)}: expected {scores.SCORES} with sha256 {expected}, found {found}")
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder, scores.SCORES)).write_bytes(content)
        table = scores.read(path)
    return Champion(release.number, release.version.tags[SEALED], release.manifest["data"], table)


def verify_parts(client: "MlflowClient", release: Registered) -> None:
    """Raise InputError unless every part is still in the registry, under the number and with the manifest that the release names."""
    for part in release.manifest["parts"].values():
        if "model" not in part:
            continue
        name, number = part["model"], release.version.tags.get(part["model"], "")
        version = _version(client, name, number, f"{_name(release.number)}: expected its part {name} version {number}")
        found = hashlib.sha256(_download(client, version, artifacts.MANIFEST)).hexdigest()
        if not found == version.tags.get(SEALED) == part["manifest_sha256"]:
            expected = f"its part {name} version {number} to have the manifest sha256 {part['manifest_sha256']}"
            raise InputError(f"{_name(release.number)}: expected {expected}, found {found}")


def champion(settings: Tracking) -> Champion | None:
    """The champion's scores; None where there is no registry or no champion yet. Raises InputError when a server does not answer."""
    if mlflow_server.absence(settings):
        return None
    with mlflow_server.reach(settings, "give the scores of the champion") as client:
        entries = journal.read(client)
        return scored(client, kept(client, entries[-1].release)) if entries else None


def challenger(client: "MlflowClient") -> str:
    """The version that the alias `challenger` points at. Raises InputError when there is none."""
    aliases = {alias: number for model in client.search_registered_models(f"name = '{RELEASE}'") for alias, number in model.aliases.items()}
    if ALIAS not in aliases:
        raise InputError(f"{RELEASE}: expected a version with the alias {ALIAS}, found none; run `unimed release`, or name a version")
    return str(aliases[ALIAS])


def _version(client: "MlflowClient", name: str, number: str, expected: str) -> "ModelVersion":
    found = client.search_model_versions(f"name = '{name}' and version_number = {number}") if number.isdecimal() else []
    if not found:
        raise InputError(f"{expected} in the registry, found none")
    return found[0]


def _download(client: "MlflowClient", version: "ModelVersion", file: str) -> bytes:
    """The bytes of a file of a version."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return mlflow_server.download(client, version, Path(folder), file).read_bytes()
        except mlflow_server.failures() as error:
            reason = mlflow_server.told(error)
            raise InputError(f"{version.name} version {version.version}: expected its {file} in the registry, found {reason}") from error


def _name(number: str) -> str:
    return f"{RELEASE} version {number}"
