"""The model card: README.md of a release in Hugging Face's form, and the description that the registry shows."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from unimed import NOTICE
from unimed.errors import InputError
from unimed.release.described import Described, licences, sources
from unimed.release.journal import Override
from unimed.release.markdown import page, plain, table
from unimed.release.parts import BASE, in_order

MODEL_CARD = "README.md"

OVERRIDES = "## Overrides"
"""The last section of the card: exceptions to the gate come and go while the release stays as it is."""

NO_OVERRIDES = "None in force."

METRICS = {"accuracy": "accuracy", "mDice": "dice", "loss": "loss"}
"""What the ladder's metrics are called there, by a word in their names."""

DESCRIPTION_MOST = 4900
"""MLflow's databases keep 5,000 characters of a description."""


def model_card(release: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], found: Mapping[str, Described]) -> str:
    """README.md: what the model is and is not, every row of the ladder, data and licences, and the hashes of all it was made of."""
    return page(
        f"---\n{_front_matter(rows, found)}---",
        "# Uni-MedVLM",
        f"**{NOTICE}** No output may guide diagnosis or treatment.",
        "A biomedical vision-language model that answers questions about an image or a marked region, points at structures with masks, "
        "and gives its reasons before it answers. This release is a set of adapters and own modules over a frozen base.",
        "## Use",
        '```python\nimport unimed\n\nmodel = unimed.load("models:/unimed-medvlm@champion")\n```',
        "It is meant for research on images like those below; not for patients, not for care, not for other kinds of images.",
        "## Scores",
        "Held-out patients; 95 % intervals over resampled patients. The baseline is named with the metric: where it is a blanked image, "
        "only the distance to it says that the model looks. The gate held the rows with a tick against a bound.",
        _ladder(rows, release),
        "## Limits",
        _limits(rows, found),
        "## Training data and licences",
        table(("data set", "licence", "modalities", "images", "patients"), sources(found)),
        "The terms of these data apply to this model as well. `DATA.md` tells more, `croissant.json` the same to programs.",
        "## Provenance",
        table(("what", "kept as", "sha256 of its manifest", "hash (DVC)"), _parts(release)),
        table(("data of", "hash (DVC)"), list(release["data"].items())),
        f"Git revision: {plain(release['git_revision']) or 'not recorded'}. Evaluation: {plain(release['evaluation']['dvc'])}. "
        f"Verdict of the gate: sha256 {plain(release['gate']['sha256'])}. `sbom.cdx.json` lists software and weights; "
        "`unimed verify` holds all files to `release.json` and its signature.",
        OVERRIDES,
        NO_OVERRIDES,
    )


def _front_matter(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Described]) -> str:
    named = licences(found)
    metrics = {word for row in rows for key, word in METRICS.items() if key in row["metric"]}
    about = {
        "language": "en",
        "license": "other",
        "license_name": re.sub(r"[^a-z0-9.]+", "-", f"research only {' '.join(named)}".lower()).strip("-"),
        "library_name": "unimed",
        "pipeline_tag": "image-text-to-text",
        "tags": ["medical", "research-only", "visual-question-answering", "image-segmentation", "mixture-of-experts", "grpo"],
        "datasets": [source.name for source in sources(found)],
        "metrics": sorted(metrics),
    }
    return yaml.safe_dump(about, sort_keys=False, allow_unicode=True)


def _ladder(rows: Sequence[Mapping[str, Any]], release: Mapping[str, Any]) -> str:
    judged = {(row["stage"], row["metric"]) for row in release["evaluation"]["rows"]}
    lines = [(row["stage"], row["metric"], *_numbers(row), "✓" if (row["stage"], row["metric"]) in judged else "") for row in rows]
    return table(("stage", "metric", "value", "95 % interval", "baseline", "n", "gate"), lines)


def _numbers(row: Mapping[str, Any]) -> tuple[object, ...]:
    bounds = "" if row["low"] is None or row["high"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
    value, baseline = ("" if row[key] is None else f"{row[key]:.3f}" for key in ("value", "baseline"))
    return value, bounds, baseline, row["n"]


def _limits(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Described]) -> str:
    names = [source.name for source in sources(found)]
    told = [
        "A score is about the patients it was measured on. Nothing here was tested on other sites, scanners, countries or age groups.",
        "It states no confidence: a wrong answer looks like a right one. It was taught in English only.",
    ]
    if names and all(name.startswith("Phantom") for name in names):
        told.insert(0, "It was trained on synthetic phantoms alone: on any real image its answers mean nothing.")
    close = [plain(f"{row['stage']}: {row['metric']}") for row in rows if _within(row)]
    if close:
        told.append(f"Not told apart from the baseline, which lies in the interval: {'; '.join(close)}.")
    return "\n".join(f"- {line}" for line in told)


def _within(row: Mapping[str, Any]) -> bool:
    return None not in (row["low"], row["high"], row["baseline"]) and row["low"] <= row["baseline"] <= row["high"]


def _parts(release: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    base = "not copied: frozen, pinned by hash"
    return [
        (name, part.get("model", base if name == BASE else ""), part["manifest_sha256"], part.get("dvc", ""))
        for name, part in in_order(release["parts"])
    ]


def read(folder: Path) -> str:
    """The model card that lies in the folder of a release. Raises InputError when there is none."""
    try:
        return (folder / MODEL_CARD).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder / MODEL_CARD}: expected the card of a release, found {error.strerror}") from error


def with_overrides(card: str, overrides: Sequence[Override]) -> str:
    """The card with the overrides in force in its last section. Raises InputError for a text without that section."""
    body, found, _ = card.rpartition(f"\n{OVERRIDES}\n")
    if not found:
        raise InputError(f"{MODEL_CARD}: expected a model card with a section {OVERRIDES!r}, found none")
    return page(body, OVERRIDES, _overrides(overrides) or NO_OVERRIDES)


def _overrides(overrides: Sequence[Override]) -> str:
    return "\n".join(f"- Until {plain(one.until)}, by {plain(one.name)}: {plain(one.reason)}" for one in overrides)


def description(release: Mapping[str, Any], overrides: Sequence[Override]) -> str:
    """What the registry shows of a release: overrides first, then licences and what the gate judged; under 5,000 characters."""
    named = sorted({licence for task in release["licences"].values() for licence in task})
    rows = [(row["stage"], row["metric"], *_numbers(row)) for row in release["evaluation"]["rows"]]
    about = f"Licences of its data: {', '.join(map(plain, named)) or 'not recorded'}."
    told = page(
        f"**{NOTICE}**",
        f"**In use by override.**\n\n{_overrides(overrides)}" if overrides else "",
        f"{about} Git revision: {plain(release['git_revision']) or 'not recorded'}.",
        "The model card is `README.md` among this version's files. What the gate judged, on held-out patients:",
    )
    while len(whole := page(told, table(("stage", "metric", "value", "95 % interval", "baseline", "n"), rows))) > DESCRIPTION_MOST and rows:
        rows.pop()
    return whole[:DESCRIPTION_MOST]
