"""The papers of a release: scores, cards and bill of materials beside its manifest, named there by hash, and signed."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from unimed.data.streamed import load
from unimed.errors import InputError
from unimed.release import cards, croissant, data_card, manifest, pyfunc, sbom, signing
from unimed.release.gate import VERDICT
from unimed.release.scores import SCORES


def write(folder: Path, gate: Path, data: Mapping[str, Path], lock: Path) -> None:
    """Add the papers to a folder with a release.json, by the gate's verdict and the validated data of each task.

    The same input gives the same bytes, but for a signature, which holds a random number.
    Raises InputError for data that are not the ones the gate judged, and for a gate that left no scores.
    """
    release, verdict = manifest.read(folder), load(gate / VERDICT)
    if not (gate / SCORES).is_file():
        raise InputError(f"{gate / SCORES}: expected the scores that the gate judged, found none; run the gate again")
    shutil.copyfile(gate / SCORES, folder / SCORES)
    datasets = data_card.describe(data, release["data"])
    (folder / cards.MODEL_CARD).write_text(cards.model_card(release, verdict["rows"], datasets), encoding="utf-8")
    (folder / data_card.DATA_CARD).write_text(data_card.text(datasets, "Data of this release"), encoding="utf-8")
    croissant.write(folder / croissant.CROISSANT, datasets)
    sbom.write(folder / sbom.SBOM, release, lock)
    pyfunc.write(folder)
    manifest.name_files(folder)
    signing.sign(folder)
