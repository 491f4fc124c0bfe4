"""Tables as Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec.html): files, tables, columns, keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from unimed import NOTICE
from unimed.data.facts import KEYS
from unimed.data.tables import write_json
from unimed.model import artifacts
from unimed.release.described import SCHEMAS, Described, licences, modalities

CROISSANT = "croissant.json"

MEANINGS = {
    "sample_id": "name of the image, without its ending",
    "mask_id": "name of the mask",
    "conversation_id": "name of the conversation",
    "split": "train, val or test; all images of a patient are in one",
    "fingerprint": "what stays of the image when it is resized or saved again; empty for one that is near-blank",
    "case": "the patient or study, unique within its data set",
    "shard": "tar file that holds the image",
    "offset": "where the image's bytes begin in its shard",
    "sha256": "hash of the image's bytes",
    "rle": "mask as COCO run-length code",
    "instance": "number of the instance; -1 for the union of all of its class",
    "turns": "JSON: question, answer, regions and targets of each turn",
}
"""What a column holds, where its name alone does not say it."""

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "key": "cr:key",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "sc": "https://schema.org/",
    "source": "cr:source",
}
"""The terms that are used here, as the specification's first appendix names them."""


def write(path: Path, found: Mapping[str, Described]) -> None:
    """Write the tables as Croissant 1.0; files are named relative to the folder that holds one folder of each name.

    `url`, `creator` and `datePublished` are what the download's provenance.json says under these names: nothing is published here.
    """
    said = {key: value for one in found.values() for key, value in one.manifest.get("provenance", {}).items()}
    about: dict[str, Any] = {key: str(said[key]) for key in ("url", "creator", "datePublished") if key in said}
    if "creator" in about:
        about["creator"] = {"@type": "sc:Organization", "name": about["creator"]}
    content = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": "unimed-medvlm-data",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "description": f"Biomedical images, masks and conversations to train and judge a vision-language model. {NOTICE}",
        "license": [_licence(name) for name in licences(found)],
        "keywords": modalities(found),
        "inLanguage": "en",
        "distribution": [_file(task, name, one.folder) for task, one in found.items() for name in SCHEMAS],
        "recordSet": [_records(task, name) for task in found for name in SCHEMAS],
        **about,
    }
    write_json(path, content)


def _licence(name: str) -> str:
    """The page of a licence, as the specification recommends; the bare word for one that is none of Creative Commons'."""
    return f"https://spdx.org/licenses/{name}" if name.startswith("CC") else name


def _file(task: str, name: str, folder: Path) -> dict[str, Any]:
    file = folder / f"{name}.parquet"
    return {
        "@type": "cr:FileObject",
        "@id": f"{task}/{name}.parquet",
        "name": f"{task}/{name}.parquet",
        "contentUrl": f"{task}/{name}.parquet",
        "contentSize": f"{file.stat().st_size} B",
        "encodingFormat": "application/x-parquet",
        "sha256": artifacts.sha256(file),
    }


def _records(task: str, name: str) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": f"{task}/{name}",
        "name": f"{task}/{name}",
        "key": {"@id": f"{task}/{name}/{KEYS[name]}"},
        "field": [_field(task, name, column) for column in SCHEMAS[name]],
    }


def _field(task: str, name: str, column: pa.Field) -> dict[str, Any]:
    foreign = {"references": {"field": {"@id": f"{task}/samples/sample_id"}}} if column.name == "sample_id" and name != "samples" else {}
    return {
        "@type": "cr:Field",
        "@id": f"{task}/{name}/{column.name}",
        "name": column.name,
        "description": MEANINGS.get(column.name, column.name.replace("_", " ")),
        "dataType": "sc:Integer" if pa.types.is_integer(column.type) else "sc:Text",
        "source": {"fileObject": {"@id": f"{task}/{name}.parquet"}, "extract": {"column": column.name}},
        **foreign,
    }
