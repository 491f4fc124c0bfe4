"""The bill of materials of a release as CycloneDX 1.6: all packages of the lock, with licences, and parts of the model with hashes."""

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimed import NOTICE
from unimed.data.tables import write_json
from unimed.errors import InputError
from unimed.release.parts import BASE, in_order

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

SBOM = "sbom.cdx.json"

_SHORT = 64
"""Letters of a licence field at most; many packages put the whole text there."""


def write(path: Path, release: Mapping[str, Any], lock: Path) -> None:
    """Write the bill of a release: packages as `lock` names them, or as they are installed where there is no such file.

    The same input gives the same bytes: the serial number comes from the content, and no time stands in it.
    Raises InputError when the package that writes such bills is not installed.
    """
    try:
        from cyclonedx.output.json import JsonV1Dot6
    except ModuleNotFoundError as error:
        raise InputError(f"{SBOM}: expected the package {error.name}, found it missing; install cyclonedx-python-lib") from error
    content = json.loads(JsonV1Dot6(_bom(release, packages(lock))).output_as_string())
    del content["serialNumber"], content["metadata"]["timestamp"]
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))
    write_json(path, content | {"serialNumber": serial.urn})


def packages(lock: Path) -> dict[str, str]:
    """Version by package, by the names that an index knows them under."""
    if lock.is_file():
        pinned = re.findall(r"(?m)^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)$", lock.read_text())
    else:
        pinned = [(one.metadata["Name"], one.version) for one in metadata.distributions() if one.metadata["Name"]]
    found = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned}
    return dict(sorted((name, version) for name, version in found.items() if name != "unimed"))


def _bom(release: Mapping[str, Any], pinned: Mapping[str, str]) -> "Bom":
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType

    root = Component(
        name=release["name"],
        version=release["git_revision"] or None,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=release["name"],
        description=NOTICE,
        components=_models(release),
    )
    used = [_package(name, version) for name, version in pinned.items()]
    bom = Bom(components=used, metadata=BomMetaData(component=root))
    bom.register_dependency(root, used)
    return bom


def _models(release: Mapping[str, Any]) -> "Iterator[Component]":
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    def digest(content: str) -> HashType:
        return HashType(alg=HashAlgorithm.SHA_256, content=content)

    for name, part in in_order(release["parts"]):
        files = release["base"]["files"] if name == BASE else {}
        yield Component(
            name=part.get("model", name),
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref=f"part:{name}",
            version=part["dvc"],
            description="frozen base models, not copied" if name == BASE else f"the part {name}",
            hashes=[digest(part["manifest_sha256"])],
            components=[
                Component(name=file, type=ComponentType.FILE, bom_ref=f"part:{name}/{file}", hashes=[digest(content)])
                for file, content in files.items()
            ],
        )


def _package(name: str, version: str) -> "Component":
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    purl = PackageURL("pypi", None, name, version)
    return Component(
        name=name, version=version, type=ComponentType.LIBRARY, purl=purl, bom_ref=purl.to_string(), licenses=list(_licence(name, version))
    )


def _licence(name: str, version: str) -> "Iterator[License]":
    """What the package's own metadata tell, in the order of how exactly they do; nothing when it is not installed in this version."""
    from cyclonedx.contrib.license.factories import LicenseFactory

    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return
    if about["Version"] != version:
        return
    classes = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("License :: ")]
    short = [text for text in about.get_all("License") or [] if len(text) <= _SHORT and "\n" not in text]
    told = [*(about.get_all("License-Expression") or []), *short, *classes]
    if words := next((text.strip() for text in told if text.strip()), ""):
        yield LicenseFactory().make_from_string(words)
