"""The data contract as data: what must hold of a subset before anything trains on it."""

from dataclasses import dataclass
from typing import Any, Literal

from unimed.config import Validate
from unimed.data.names import MODALITIES

Severity = Literal["stop", "quarantine", "warn"]
Check = tuple[str, dict[str, Any]]
"""Name and arguments of a class of great_expectations.expectations; arguments are whatever that class takes."""

LEFTOVER = r"<image>|</?mask>|</?region>|<SEG>|masks(?:_merged)?/|images/\S*--|\.(?:png|jpe?g)\b"
"""What only a file path or an unfilled template leaves in a text."""


@dataclass(frozen=True, slots=True)
class Promise:
    """An expectation on the facts of a table. A broken one ends the stage (stop), costs the row (quarantine) or is told (warn)."""

    name: str
    table: str
    severity: Severity
    says: str
    check: Check


def contract(bounds: Validate) -> tuple[Promise, ...]:
    """All promises, in the order in which they are told. `facts.py` says what the columns are."""
    return (
        Promise("image_ids_unique", "samples", "stop", "an image is listed once", _unique("sample_id")),
        Promise("image_bytes", "samples", "stop", "the shard holds the bytes that were packed (sha256)", _is("bytes_match", True)),
        Promise("case_in_one_split", "samples", "stop", "all slices of a case are in one split", _is("splits_of_case", 1)),
        Promise("image_decodes", "samples", "quarantine", "the image decodes to its last pixel", _is("decodes", True)),
        Promise("image_size", "samples", "quarantine", "the image has the noted height and width", _is("size_matches", True)),
        Promise("modality_known", "samples", "quarantine", f"the modality is {', '.join(MODALITIES)}", _in("modality", MODALITIES)),
        Promise("licence_known", "samples", "warn", "the licence of the data set is known", _not_in("licence", ("", "unknown"))),
        Promise("mask_ids_unique", "masks", "stop", "a mask is listed once", _unique("mask_id")),
        Promise("mask_has_image", "masks", "quarantine", "the mask's image is in the subset", _is("sample_exists", True)),
        Promise("mask_unpacks", "masks", "quarantine", "the run lengths fill the mask", _is("unpacks", True)),
        Promise("mask_size", "masks", "quarantine", "the mask is as large as its image", _is("size_matches", True)),
        Promise("mask_not_empty", "masks", "quarantine", "the mask has foreground", _between("area_px", low=1)),
        Promise("mask_area_noted", "masks", "quarantine", "the mask has the noted area", _is("area_matches", True)),
        Promise(
            "mask_not_tiny",
            "masks",
            "quarantine",
            f"the mask covers at least {bounds.min_area_px} pixels",
            _between("area_px", low=bounds.min_area_px),
        ),
        Promise(
            "mask_not_inverted",
            "masks",
            "quarantine",
            f"the mask covers at most {bounds.max_area_fraction:.0%} of its image",
            _between("area_fraction", high=bounds.max_area_fraction),
        ),
        Promise("conversation_ids_unique", "conversations", "stop", "a conversation is listed once", _unique("conversation_id")),
        Promise("turns_readable", "conversations", "quarantine", "the turns are questions with answers", _is("readable", True)),
        Promise("conversation_has_image", "conversations", "quarantine", "its image is in the subset", _is("sample_exists", True)),
        Promise("masks_resolve", "conversations", "quarantine", "regions and targets are masks of its image", _is("masks_resolve", True)),
        Promise("seg_per_target", "conversations", "quarantine", "answers have one <SEG> for each target", _is("seg_surplus", 0)),
        Promise("mark_per_region", "conversations", "quarantine", "questions have one <region> for each region", _is("region_surplus", 0)),
        Promise("no_empty_text", "conversations", "quarantine", "no question and no answer is empty", _is("empty_texts", 0)),
        Promise("no_leftover", "conversations", "quarantine", "no text holds a file path or a stray mark", _free_of("text", LEFTOVER)),
        Promise("solution_is_option", "conversations", "quarantine", "the solution is an option's letter", _is("solution_is_option", True)),
    )


def _unique(column: str) -> Check:
    return "ExpectColumnValuesToBeUnique", {"column": column}


def _is(column: str, value: bool | int) -> Check:
    return _in(column, (value,))


def _in(column: str, values: tuple[Any, ...]) -> Check:
    return "ExpectColumnValuesToBeInSet", {"column": column, "value_set": list(values)}


def _not_in(column: str, values: tuple[str, ...]) -> Check:
    return "ExpectColumnValuesToNotBeInSet", {"column": column, "value_set": list(values)}


def _between(column: str, low: int | None = None, high: float | None = None) -> Check:
    return "ExpectColumnValuesToBeBetween", {"column": column, "min_value": low, "max_value": high}


def _free_of(column: str, pattern: str) -> Check:
    return "ExpectColumnValuesToNotMatchRegex", {"column": column, "regex": pattern}
