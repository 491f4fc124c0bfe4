"""croissant.json has what the Croissant 1.0 specification requires, and says of files and columns what is true."""

import json

import pyarrow.parquet as pq
import pytest
import released

from unimed.model import artifacts
from unimed.release import croissant, data_card, described, manifest

TERMS = {"@context", "@type", "conformsTo", "description", "license", "name", "distribution", "recordSet"}
"""What the specification requires of a data set, less url, creator and datePublished, which a release does not know by itself."""


@pytest.fixture
def content(released_project):
    return json.loads((released_project / "reports/release/croissant.json").read_text())


def test_required_properties_are_there(content):
    assert content.keys() >= TERMS
    assert (content["@type"], content["conformsTo"]) == ("sc:Dataset", "http://mlcommons.org/croissant/1.0")
    assert content["license"] == ["https://spdx.org/licenses/CC-BY-4.0", "https://spdx.org/licenses/CC0-1.0"]
    assert content["@context"]["cr"] == "http://mlcommons.org/croissant/"


def test_every_term_that_is_used_stands_in_the_context_or_in_schema_org(content):
    schema_org = {"name", "description", "license", "keywords", "inLanguage", "distribution"}
    schema_org |= {"contentUrl", "contentSize", "encodingFormat", "sha256"}

    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    used = keys({key: value for key, value in content.items() if key != "@context"})
    assert not {key for key in used if not key.startswith("@")} - content["@context"].keys() - schema_org


def test_identifiers_are_unique_and_references_lead_somewhere(content):
    records = content["recordSet"]
    fields = [field for record in records for field in record["field"]]
    names = [item["@id"] for item in [*content["distribution"], *records, *fields]]
    assert len(names) == len(set(names))
    known = set(names)
    assert all(field["source"]["fileObject"]["@id"] in known for field in fields)
    assert all(record["key"]["@id"] in known for record in records)
    foreign = [field["references"]["field"]["@id"] for field in fields if "references" in field]
    assert len(foreign) == 8 and set(foreign) <= known


def test_files_have_their_size_and_hash_and_columns_are_the_tables(content, released_project):
    files = {file["@id"]: file for file in content["distribution"]}
    assert len(files) == 12
    for name, file in files.items():
        path = released_project / "data/valid" / file["contentUrl"]
        assert (file["@type"], file["sha256"], file["contentSize"]) == ("cr:FileObject", artifacts.sha256(path), f"{path.stat().st_size} B")
        [record] = [record for record in content["recordSet"] if f"{record['@id']}.parquet" == name]
        schema = pq.read_schema(path)
        assert [field["source"]["extract"]["column"] for field in record["field"]] == schema.names
        kinds = {"string": "sc:Text", "int32": "sc:Integer", "int64": "sc:Integer"}
        assert [field["dataType"] for field in record["field"]] == [kinds[str(kind)] for kind in schema.types]


def test_what_the_download_says_of_its_publication_is_passed_on(released_project, tmp_path):
    root = released.copied(released_project, tmp_path)
    said = {"url": "https://example.org/data", "creator": "A group", "datePublished": "2025-02-03"}
    data = released.of(root).data
    for folder in data.values():
        manifest_ = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest_ | {"provenance": said}))
    found = {task: described.described(folder) for task, folder in data.items()}
    croissant.write(root / "croissant.json", found)
    content = json.loads((root / "croissant.json").read_text())
    assert (content["url"], content["datePublished"]) == ("https://example.org/data", "2025-02-03")
    assert content["creator"] == {"@type": "sc:Organization", "name": "A group"}
    assert "https://example.org/data" in data_card.text(found, "Data")
    assert manifest.read(root / "reports/release")["files"]["croissant.json"] != artifacts.sha256(root / "croissant.json")
