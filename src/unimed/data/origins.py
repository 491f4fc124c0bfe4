"""Images that do not bear SA-Med2D's names: what their records or the download say of them, and the name they get from it.

LLaVA-Med's captions may say `domain`, OmniMedVQA's questions `modality_type` and `dataset`, MedVLM-R1's `subset` and `dataset`.
What no record says stands once for each file with annotations in the download's provenance.json, under `images`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimed.data import names
from unimed.data.names import MODALITIES, ImageName
from unimed.errors import InputError

_WORDS = {
    **dict.fromkeys(("ct", "ctscan", "ctcomputedtomography", "computedtomography"), "ct"),
    **dict.fromkeys(("mr", "mri", "mrmagneticresonanceimaging", "magneticresonanceimaging"), "mr"),
    **dict.fromkeys(("xray", "chestxray"), "x_ray"),
    **dict.fromkeys(("fundus", "fundusphotography"), "fundus"),
    **dict.fromkeys(("microscopy", "microscopyimages", "histology", "histopathology"), "microscopy"),
    **dict.fromkeys(("oct", "octopticalcoherencetomography", "opticalcoherencetomography"), "oct"),
    **{known: known for known in ("dermoscopy", "endoscopy", "pet", "ultrasound")},
}
"""Modalities by the letters of what these files call them, such as `MR (Mag-netic Resonance Imaging)`."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Data set and modality of an image; empty where nobody says them. Words that stand for none of MODALITIES stay as they are."""

    dataset: str = ""
    modality: str = ""


UNSAID = Origin()


def said(raw: Mapping[str, Any]) -> Origin:
    """What a record of JSON says of its image."""
    dataset, words = raw.get("dataset"), raw.get("modality_type") or raw.get("subset")
    domain = raw.get("domain")
    marked = [name for name, holds in domain.items() if holds is True] if isinstance(domain, dict) else []
    spoken = words if isinstance(words, str) else marked[0] if len(marked) == 1 else ""
    letters = "".join(re.findall("[a-z]+", spoken.lower()))
    return Origin(dataset.strip() if isinstance(dataset, str) else "", _WORDS.get(letters, spoken))


def declared(provenance: Mapping[str, Any], path: Path) -> dict[str, Origin]:
    """What a provenance.json at `path` says of images, by file with annotations. Raises InputError when it is built otherwise."""
    images = provenance.get("images", {})
    if not isinstance(images, dict):
        raise InputError(f"{path}: expected 'images' by file with annotations, found {images!r:.80}")
    for file, about in images.items():
        texts = isinstance(about, dict) and about.keys() <= {"dataset", "modality"} and all(isinstance(one, str) for one in about.values())
        if not texts or about.get("modality", MODALITIES[0]) not in MODALITIES:
            known = ", ".join(MODALITIES)
            raise InputError(f"{path}: expected 'dataset' and 'modality' ({known}) of the images of {file!r}, found {about!r:.80}")
    return {file: Origin(**about) for file, about in images.items()}


def image_name(path: str, origin: Origin, file: str) -> ImageName:
    """What is known of the image that a record of `file` names: by its name, else by its origin.

    Raises InputError when neither says enough. A name with `--` in it is meant as SA-Med2D's and must follow its grammar.
    """
    try:
        return names.image(path)
    except InputError as error:
        missing = [word for word, value in (("dataset", origin.dataset), ("modality", origin.modality)) if not value]
        if "--" in path or not names.is_plain(path):
            raise
        if missing:
            told = f"and no {' and no '.join(missing)} in its record or for {file} under 'images' in provenance.json"
            raise InputError(f"{error}, {told}") from error
    return names.named_after(path, origin.modality, origin.dataset)
