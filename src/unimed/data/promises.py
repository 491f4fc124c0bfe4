"""The data contract as data: what must hold of a subset before anything trains on it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from unimed.config import Severity, Validate
from unimed.data.checks import Between, Check, FreeOf, NoneOf, OneOf, Unique
from unimed.data.names import MODALITIES
from unimed.errors import InputError

_EDGE = "[^0-9A-Za-z_]"
LEFTOVER = (
    r"</?(?:image|mask|region|SEG|box|bbox|point|ref)>|\{\}|\{(?:[a-z]+_[a-z_]+|answer|class|image|label|mask|modality|name|organ|question|region)\}"
    rf"|\[(?:ANSWER|CLASS|IMAGE|INSERT|LABEL|MASK|MODALITY|NAME|ORGAN|QUESTION|REGION)[^\]]*\]|%s|(?:^|{_EDGE})(?:TODO|FIXME|NaN)(?:{_EDGE}|$)"
)
"""What only an unfilled template leaves in a text."""

PATH = (
    rf"masks(?:_merged)?/|images/[^ ]*--|\.(?:png|jpe?g|bmp|tiff?|dcm|nii|npy|npz)(?:{_EDGE}|$)|[A-Za-z]:\\"
    r"|(?:^|[^0-9A-Za-z_.])/(?:[0-9A-Za-z_.-]+/)+|[0-9A-Za-z]--[0-9A-Za-z_.-]+--(?:[xyz]_[0-9]|2d_none)"
)
"""What only a file path or the name of an image leaves in a text: a label may stand in it."""

GREY_OR_RGB = ("L", "LA", "RGB", "RGBA", "P", "1", "I", "F", "")
"""Bands of images whose colours are what they seem; none where an image does not decode, which is another promise."""

COUNTED = ("classes", "modalities")
"""Tables that count others: a row of theirs cannot be left out."""


@dataclass(frozen=True, slots=True)
class Promise:
    """An expectation on the facts of a table. A broken one ends the stage (stop), costs the row (quarantine) or is told (warn)."""

    name: str
    table: str
    severity: Severity
    says: str
    check: Check


def contract(bounds: Validate) -> tuple[Promise, ...]:
    """All promises, in the order in which they are told. `facts.py` says what the columns are.

    Raises InputError when `bounds.severities` names a promise that is none, or would leave out a row of a table that counts.
    """
    promises = (*_samples(bounds), *_masks(bounds), *_conversations(), *_coverage(bounds))
    if unknown := sorted(bounds.severities.keys() - {promise.name for promise in promises}):
        known = ", ".join(promise.name for promise in promises)
        raise InputError(f"validate.severities: expected names of promises ({known}), found {unknown[0]!r}")
    chosen = tuple(replace(promise, severity=bounds.severities.get(promise.name, promise.severity)) for promise in promises)
    for promise in chosen:
        if promise.table in COUNTED and promise.severity == "quarantine":
            raise InputError(f"validate.severities: expected stop or warn for {promise.name}, found 'quarantine'; no row can be left out")
    return chosen


def _samples(bounds: Validate) -> Iterator[Promise]:
    table = "samples"
    yield Promise("image_ids_unique", table, "stop", "an image is listed once", Unique("sample_id"))
    yield Promise("image_bytes", table, "stop", "the shard holds the bytes that were packed (sha256)", OneOf("bytes_match", (True,)))
    yield Promise("case_in_one_split", table, "stop", "all slices of a case are in one split", OneOf("splits_of_case", (1,)))
    says = "no image is nearly that of another case in another split"
    yield Promise("image_in_one_split", table, "stop", says, OneOf("seen_elsewhere", (False,)))
    yield Promise("image_decodes", table, "quarantine", "the image decodes to its last pixel", OneOf("decodes", (True,)))
    yield Promise("image_size", table, "quarantine", "the image has the noted height and width", OneOf("size_matches", (True,)))
    yield Promise("image_channels", table, "quarantine", "the image is grey or RGB", OneOf("bands", GREY_OR_RGB))
    yield Promise("image_has_content", table, "quarantine", "the image has more than two grey values", NoneOf("levels", (1, 2)))
    if bounds.most_glyphs is not None:
        says = f"no row of more than {bounds.most_glyphs} shapes looks like text burned into the image"
        yield Promise("image_without_text", table, "quarantine", says, Between("glyphs", high=bounds.most_glyphs))
    yield Promise("image_name", table, "quarantine", "the name says what the table says", OneOf("name_agrees", (True,)))
    yield Promise("modality_known", table, "quarantine", f"the modality is {', '.join(MODALITIES)}", OneOf("modality", MODALITIES))
    yield Promise("licence_known", table, "warn", "the licence of the data set is known", NoneOf("licence", ("", "unknown")))
    if bounds.licences is not None:
        allowed = ", ".join(bounds.licences)
        yield Promise("licence_allowed", table, "stop", f"the licence of the data set is {allowed}", OneOf("licence", bounds.licences))


def _masks(bounds: Validate) -> Iterator[Promise]:
    table, low, high = "masks", bounds.min_area_px, bounds.max_area_fraction
    yield Promise("mask_ids_unique", table, "stop", "a mask is listed once", Unique("mask_id"))
    yield Promise("mask_has_image", table, "quarantine", "the mask's image is in the subset", OneOf("sample_exists", (True,)))
    yield Promise("mask_name", table, "quarantine", "the name says what the table says", OneOf("name_agrees", (True,)))
    yield Promise("class_id_has_one_name", table, "quarantine", "a class id has one name in its data set", OneOf("names_of_class_id", (1,)))
    yield Promise("mask_unpacks", table, "quarantine", "the run lengths fill the mask", OneOf("unpacks", (True,)))
    yield Promise("mask_size", table, "quarantine", "the mask is as large as its image", OneOf("size_matches", (True,)))
    yield Promise("mask_not_empty", table, "quarantine", "the mask has foreground", Between("area_px", low=1))
    yield Promise("mask_area_noted", table, "quarantine", "the mask has the noted area", OneOf("area_matches", (True,)))
    yield Promise("mask_not_tiny", table, "quarantine", f"the mask covers at least {low} pixels", Between("area_px", low=low))
    yield Promise(
        "mask_not_inverted", table, "quarantine", f"the mask covers at most {high:.0%} of its image", Between("area_fraction", high=high)
    )
    parts = bounds.max_components
    yield Promise("mask_not_scattered", table, "warn", f"the mask has at most {parts} connected parts", Between("components", high=parts))


def _conversations() -> Iterator[Promise]:
    table = "conversations"
    yield Promise("conversation_ids_unique", table, "stop", "a conversation is listed once", Unique("conversation_id"))
    for name, column, value, says in (
        ("turns_readable", "readable", True, "the turns are questions with answers"),
        ("conversation_has_image", "sample_exists", True, "its image is in the subset"),
        ("masks_resolve", "masks_resolve", True, "regions and targets are masks of its image"),
        ("seg_per_target", "seg_unmatched", 0, "answers have one <SEG> for each target"),
        ("mark_per_region", "region_unmatched", 0, "questions have one <region> for each region"),
        ("no_empty_text", "empty_texts", 0, "no question and no answer is empty"),
    ):
        yield Promise(name, table, "quarantine", says, OneOf(column, (value,)))
    yield Promise("no_leftover", table, "quarantine", "no text holds a stray mark or an unfilled template", FreeOf("text", LEFTOVER))
    yield Promise("no_path", table, "quarantine", "no text holds a file path or the name of an image", FreeOf("text", PATH))
    for name, column, says in (
        ("solution_is_option", "solution_is_option", "the solution is an option's letter"),
        ("class_asked_is_shown", "class_agrees", "the class that a question names is that of its mask"),
        ("class_told_is_marked", "region_class_agrees", "the class that an answer names is that of its region"),
        ("absent_is_absent", "absent_is_absent", "what an answer does not point at has no mask"),
        ("side_of_class", "side_agrees", "left and right in a text are as in the class of its mask"),
        ("box_holds_mask", "box_holds", "the box that a text gives holds its mask"),
        ("modality_told", "modality_agrees", "the modality that a text names is that of its image"),
    ):
        yield Promise(name, table, "quarantine", says, OneOf(column, (True,)))
    says = "a mask lies on the side that its class or text says, where the orientation is known"
    yield Promise("side_of_mask", table, "warn", says, OneOf("side_is_seen", (True,)))


def _coverage(bounds: Validate) -> Iterator[Promise]:
    """Floors of counts; 0 is kept by anything."""
    masks, images = bounds.least_masks_of_class, bounds.least_images_of_modality
    yield Promise("classes_covered", "classes", "stop", f"each class has at least {masks} masks", Between("masks", low=masks))
    yield Promise("modalities_covered", "modalities", "stop", f"each modality has at least {images} images", Between("images", low=images))
