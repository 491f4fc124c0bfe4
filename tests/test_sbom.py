"""The bill of materials: valid CycloneDX 1.6, every package of the lock, every part of the model, and the same bytes every time."""

import json
import re
from importlib import metadata

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from conftest import ROOT
from unimed.release import manifest, sbom


@pytest.fixture
def release(released_project):
    return manifest.read(released_project / "reports/release")


@pytest.fixture
def bill(released_project):
    return json.loads((released_project / "reports/release/sbom.cdx.json").read_text())


def test_the_schema_of_cyclonedx_finds_nothing_wrong(released_project):
    text = (released_project / "reports/release/sbom.cdx.json").read_text()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"library"', '"no such type"')) is not None


def test_every_pinned_package_is_listed_with_its_address_and_the_project_itself_is_not(bill):
    found = {(one["name"], one["version"], one["purl"]) for one in bill["components"]}
    pinned = {("accelerate", "1.15.0"), ("numpy", "2.4.0"), ("some-package", "1.0")}
    assert found == {(name, version, f"pkg:pypi/{name}@{version}") for name, version in pinned}


def test_parts_are_models_with_the_hashes_of_the_release(bill, release):
    root = bill["metadata"]["component"]
    assert (root["name"], root["type"], root["version"]) == ("unimed-medvlm", "machine-learning-model", "abc")
    parts = {part["bom-ref"].removeprefix("part:"): part for part in root["components"]}
    assert parts.keys() == release["parts"].keys()
    for name, part in parts.items():
        assert part["type"] == "machine-learning-model"
        assert part["hashes"] == [{"alg": "SHA-256", "content": release["parts"][name]["manifest_sha256"]}]
    base = {file["name"]: file["hashes"][0]["content"] for file in parts["foundation"]["components"]}
    assert base == release["base"]["files"]


def test_the_same_input_gives_the_same_bytes_without_a_time(release, tmp_path):
    lock = ROOT / "requirements.lock"
    for name in ("one", "two"):
        sbom.write(tmp_path / name, release, lock)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert "timestamp" not in (tmp_path / "one").read_text()
    sbom.write(tmp_path / "other", {**release, "git_revision": "def"}, lock)
    serials = [json.loads((tmp_path / name).read_text())["serialNumber"] for name in ("one", "other")]
    assert serials[0] != serials[1] and all(re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", serial) for serial in serials)


def test_licences_are_what_the_packages_say_and_only_of_the_version_installed(release, tmp_path):
    here = metadata.version("pydantic")
    (tmp_path / "lock").write_text(f"pydantic=={here}\ntorch==0.0.1\n")
    sbom.write(tmp_path / "bill", release, tmp_path / "lock")
    found = {one["name"]: one.get("licenses") for one in json.loads((tmp_path / "bill").read_text())["components"]}
    assert found == {"pydantic": [{"license": {"id": "MIT"}}], "torch": None}


def test_the_whole_lock_is_valid_and_most_of_it_has_a_licence(release, tmp_path):
    sbom.write(tmp_path / "bill", release, ROOT / "requirements.lock")
    text = (tmp_path / "bill").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    packages = json.loads(text)["components"]
    assert len(packages) == len(re.findall(r"(?m)^\S+==", (ROOT / "requirements.lock").read_text()))
    assert sum("licenses" in one for one in packages) > 0.9 * len(packages)


def test_without_a_lock_the_bill_lists_what_is_installed(tmp_path):
    found = sbom.packages(tmp_path / "none")
    assert found["torch"] == metadata.version("torch") and "unimed" not in found
    assert list(found) == sorted(found)
