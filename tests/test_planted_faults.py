"""Each kind of fault, put into one row of good data, is found there by its name; untouched data raise no alarm."""

import json
from pathlib import Path

import numpy as np
import planted
import pytest
import raw_tree
import yaml
from planted import Subset
from planted_pixels import IMAGES, MASKS, a_mask, marks, points, points_at_nothing

from conftest import ROOT
from unimed.config import Ingest, Validate
from unimed.data import phantom_files, subset

pytestmark = pytest.mark.slow
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
BOUNDS = Validate.model_validate(PARAMS["validate"] | {"most_glyphs": 3})
REAL = ROOT.parent / "shared" / "data" / "sa-med2d-sample"


def ingested(raw: Path, folder: Path) -> Path:
    raw_tree.ingested(raw, folder, Ingest.model_validate(PARAMS["ingest"]), seed=0)
    for task in subset.TASKS:
        raw_tree.chosen(folder, task)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Shards and subsets of phantoms."""
    folder = tmp_path_factory.mktemp("phantoms")
    phantom_files.write(folder / "raw", cases=30, slices=2, seed=0)
    return ingested(folder / "raw", folder)


@pytest.fixture
def good(made, tmp_path):
    """A copy of the subset of a task, to be spoilt."""
    return lambda task="grounding": planted.copied(made / "subsets" / task, made / "shards", tmp_path, BOUNDS)


@pytest.mark.parametrize("task", subset.TASKS)
def test_untouched_phantoms_raise_no_alarm(good, tmp_path, task):
    assert good(task).alarms(tmp_path / "subset") == {}


@pytest.mark.skipif(not REAL.exists(), reason="needs the real sample in ../shared/data beside the repository")
@pytest.mark.parametrize("task", subset.TASKS)
def test_real_slices_raise_no_alarm_but_for_the_licence_that_nobody_noted(tmp_path, task):
    made = ingested(REAL, tmp_path / "made")
    found = planted.copied(made / "subsets" / task, made / "shards", tmp_path, BOUNDS).alarms(tmp_path / "subset")
    assert set(found) == {"licence_known"}


def said(fits, **values):
    """A fault that puts values into the first turn that fits; a function makes them from turn and subset."""

    def plant(found: Subset) -> str:
        key, turn = found.turn(fits)
        return found.say(key, turn, **{name: value(turn, found) if callable(value) else value for name, value in values.items()})

    return plant


def class_of(turn: dict, found: Subset) -> str:
    mask = (turn["regions"] or turn["targets"][0])[0]
    return str(found.tables.masks.set_index("mask_id")["class_name"][mask])


def renamed(text: str):
    """A function of turn and subset: one of its texts with another class in the place of the right one."""

    def other(turn: dict, found: Subset) -> str:
        right = class_of(turn, found)
        return turn[text].replace(right, next(name for name in ("liver", "spleen") if name != right))

    return other


def mask_of_another(turn: dict, found: Subset) -> list[list[str]]:
    """A mask of the same class on another image."""
    stem, name, rows = turn["targets"][0][0].rpartition("--")[0], class_of(turn, found), found.tables.masks
    return [[next(key for key in rows["mask_id"][rows["class_name"] == name] if not key.startswith(stem))]]


def ask_for_what_is_there(found: Subset) -> str:
    """An answer that refuses, to a question about a class of which there is a mask."""
    mask = a_mask(found)
    row = found.tables.masks.set_index("mask_id").loc[mask]
    about = found.tables.conversations[found.tables.conversations["sample_id"] == row["sample_id"]]
    key = next(key for key, text in about[["conversation_id", "turns"]].itertuples(index=False) if points_at_nothing(json.loads(text)[0]))
    turn = {"question": f"Please segment the {row['class_name']} in this image.", "answer": "There is none.", "regions": [], "targets": []}
    return found.say(key, turn)


def wrong_modality(turn: dict, found: Subset) -> str:
    return {"Yes": "No", "No": "Yes"}[turn["answer"]]


def stated_modality(found: Subset) -> str:
    key, turn = found.turn(points)
    modality = found.tables.samples.set_index("sample_id")["modality"][key.rpartition("--")[0]]
    return found.say(key, turn, question=turn["question"].replace("this image", f"this {'CT' if modality != 'ct' else 'MRI'} image"))


def side_of_class(found: Subset) -> str:
    """A class with a side in its name, asked for with the other side."""
    key, turn = found.turn(lambda turn: points(turn) and "kidney" in turn["question"])
    rows = found.tables.masks
    found.tables.masks["class_name"] = rows["class_name"].where(rows["class_name"] != "kidney", "kidney_left")
    return found.say(key, turn, question="Please segment the right kidney in this image.")


def side_of_mask(found: Subset) -> str:
    """A text with a side, of a data set in which it is known that left is right."""
    found.manifest["provenance"]["orientation"] = {"PhantomA": "radiological", "PhantomB": "radiological"}
    key, turn = found.turn(lambda turn: points(turn) and "liver" in turn["question"])
    pixels = found.mask(turn["targets"][0][0])
    seen = "left" if np.nonzero(pixels)[1].mean() < pixels.shape[1] / 2 else "right"
    return found.say(key, turn, question=f"Please segment the {seen} liver in this image.")


CONVERSATIONS = {
    "listed twice": ("conversation_ids_unique", "grounding", lambda found: found.double("conversations")),
    "no JSON": (
        "turns_readable",
        "grounding",
        lambda found: found.put("conversations", found.turn(points_at_nothing)[0], turns='[{"a": 1}]'),
    ),
    "no image": (
        "conversation_has_image",
        "grounding",
        lambda found: found.put("conversations", found.turn(points_at_nothing)[0], sample_id="nobody"),
    ),
    "mask of another image": ("masks_resolve", "grounding", said(points, targets=mask_of_another)),
    "mask that is not there": ("masks_resolve", "grounding", said(points, targets=[["ct--x--y--z_0001--0001_000"]])),
    "target without a mask": ("masks_resolve", "grounding", said(points, targets=[[]])),
    "mark too many": ("seg_per_target", "grounding", said(points, answer="<SEG> and <SEG>")),
    "mark too few": ("seg_per_target", "grounding", said(points, answer="Here.")),
    "region without a mark": ("mark_per_region", "vqa", said(marks, question="Which structure is it?")),
    "empty question": ("no_empty_text", "grounding", said(points_at_nothing, question=" \n")),
    "empty answer": ("no_empty_text", "vqa", said(marks, answer="")),
    "template": ("no_leftover", "grounding", said(points_at_nothing, question="Please segment the {organ}.")),
    "tag": ("no_leftover", "vqa", said(marks, question="<image>\nWhich structure lies in <region>?")),
    "path of a mask": ("no_path", "grounding", said(points_at_nothing, question="Segment masks/it.")),
    "file name": ("no_path", "vqa", said(marks, answer="The one in scan_7.png.")),
    "name of an image": ("no_path", "vqa", said(marks, answer="See ct_00--LiverSet--case_1--z_0004.")),
    "other class asked for": ("class_asked_is_shown", "grounding", said(points, question=renamed("question"))),
    "other class told": ("class_told_is_marked", "vqa", said(marks, answer=renamed("answer"))),
    "there, but told absent": ("absent_is_absent", "grounding", ask_for_what_is_there),
    "other side than the class": ("side_of_class", "grounding", side_of_class),
    "other side than the mask": ("side_of_mask", "grounding", side_of_mask),
    "box elsewhere": ("box_holds_mask", "vqa", said(marks, question="Which structure lies in <region> [1, 1, 4, 4]?")),
    "modality denied": ("modality_told", "vqa", said(lambda turn: turn["question"].startswith("Is this a"), answer=wrong_modality)),
    "modality stated": ("modality_told", "grounding", stated_modality),
}
FOLLOWING = {
    "image_bytes": {"image_decodes", "image_size"},
    "image_decodes": {"image_size"},
    "modality_known": {"image_name"},
    "mask_has_image": {"masks_resolve", "mask_name"},
    "mask_unpacks": {"mask_not_empty", "mask_area_noted", "mask_not_tiny"},
    "mask_not_empty": {"mask_not_tiny"},
    "side_of_class": {"class_asked_is_shown"},
}
"""What else a fault breaks by its nature."""


@pytest.mark.parametrize(
    ("promise", "task", "plant"),
    [
        *(pytest.param(name, "grounding", plant, id=f"image: {fault}") for fault, (name, plant) in IMAGES.items()),
        *(pytest.param(name, "grounding", plant, id=f"mask: {fault}") for fault, (name, plant) in MASKS.items()),
        *(pytest.param(*one, id=f"conversation: {fault}") for fault, one in CONVERSATIONS.items()),
    ],
)
def test_a_fault_is_found_by_its_name_where_it_is(good, tmp_path, promise, task, plant):
    found = good(task)
    key = plant(found)
    alarms = found.alarms(tmp_path / "subset")
    assert key in alarms[promise]
    assert alarms.keys() - FOLLOWING.get(promise, set()) == {promise}
    unique = promise.endswith(("unique", "in_one_split"))
    assert len(alarms[promise]) == 1 or unique, "and no other row"
