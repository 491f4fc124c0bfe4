"""Each kind of fault, put into one row of good data, is found there by its name; untouched data raise no alarm."""

import json
from pathlib import Path

import numpy as np
import planted
import pytest
import raw_tree
import yaml
from PIL import Image
from planted import Subset

from conftest import ROOT
from unimed.config import Ingest, Validate
from unimed.data import phantom_files, subset

pytestmark = pytest.mark.slow
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
BOUNDS = Validate.model_validate(PARAMS["validate"])
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


def points(turn: dict) -> bool:
    """Whether a turn points at one mask."""
    return len(turn["targets"]) == 1 and len(turn["targets"][0]) == 1


def points_at_nothing(turn: dict) -> bool:
    return not turn["targets"] and not turn["regions"]


def marks(turn: dict) -> bool:
    """Whether a turn asks about one region."""
    return len(turn["regions"]) == 1


def a_sample(found: Subset, place: int = 3) -> str:
    return str(found.tables.samples["sample_id"].iloc[place])


def a_mask(found: Subset) -> str:
    """A mask that is a whole class of its image."""
    return found.turn(points)[1]["targets"][0][0]


def spoil_shard(found: Subset, key: str) -> str:
    row = found.tables.samples.set_index("sample_id").loc[key]
    with (found.shards / str(row["shard"])).open("r+b") as shard:
        shard.seek(int(row["offset"]) + 8 + 8 + 5)  # a byte of the header that is no length and no type
        shard.write(b"\xff")
    return key


def size_of(found: Subset, key: str) -> tuple[int, int]:
    row = found.tables.samples.set_index("sample_id").loc[key]
    return int(row["width"]), int(row["height"])


def noise(found: Subset, key: str) -> Image.Image:
    width, height = size_of(found, key)
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def two_values(found: Subset, key: str) -> Image.Image:
    return noise(found, key).convert("L").point(lambda value: 255 * (value > 127))


def truncated(found: Subset, key: str) -> str:
    return found.pack(key, planted.encoded(noise(found, key))[:-200])


def checkered(found: Subset, key: str) -> str:
    pixels = np.zeros(found.mask(key).shape, dtype=bool)
    pixels[::2, ::2] = True
    return found.draw(key, pixels)


def tiny(found: Subset, key: str) -> str:
    pixels = np.zeros_like(found.mask(key))
    pixels[5, 5:7] = True
    return found.draw(key, pixels)


def turned(found: Subset, key: str) -> str:
    """The mask lies on its side, as if rows were columns."""
    row = found.tables.masks.set_index("mask_id").loc[key]
    found.draw(key, found.mask(key).T)
    return found.put("masks", key, height=int(row["width"]), width=int(row["height"]))


def oblong(found: Subset) -> str:
    """A mask of an image that is not square."""
    rows = found.tables.masks
    return str(rows["mask_id"][rows["height"] != rows["width"]].iloc[0])


def other_split(found: Subset) -> str:
    samples = found.tables.samples
    key = str(samples["sample_id"][samples["split"] == "train"].iloc[0])
    return found.put("samples", key, split="test")


IMAGES = {
    "listed twice": ("image_ids_unique", lambda found: found.double("samples")),
    "other bytes in the shard": ("image_bytes", lambda found: spoil_shard(found, a_sample(found))),
    "shard outside its folder": ("image_bytes", lambda found: found.put("samples", a_sample(found), shard="../shard-000000.tar")),
    "shard that is missing": ("image_bytes", lambda found: found.put("samples", a_sample(found), shard="shard-000099.tar")),
    "case in two splits": ("case_in_one_split", other_split),
    "image cut short": ("image_decodes", lambda found: truncated(found, a_sample(found))),
    "text for an image": ("image_decodes", lambda found: found.pack(a_sample(found), b"no image")),
    "other size": ("image_size", lambda found: found.pack(a_sample(found), Image.effect_noise((30, 40), 50))),
    "colours of print": (
        "image_channels",
        lambda found: found.pack(a_sample(found), noise(found, a_sample(found)).convert("CMYK"), "JPEG"),
    ),
    "mask for an image": ("image_has_content", lambda found: found.pack(a_sample(found), two_values(found, a_sample(found)))),
    "blank image": ("image_has_content", lambda found: found.pack(a_sample(found), Image.new("L", size_of(found, a_sample(found)), 7))),
    "slice of another name": ("image_name", lambda found: found.put("samples", a_sample(found), slice="z_0099")),
    "case of another name": ("image_name", lambda found: found.put("samples", a_sample(found), case="case_99999")),
    "modality of another name": ("image_name", lambda found: found.put("samples", a_sample(found), modality="x_ray")),
    "unknown modality": ("modality_known", lambda found: found.put("samples", a_sample(found), modality="sonar")),
    "unknown licence": ("licence_known", lambda found: found.put("samples", a_sample(found), licence="unknown")),
}
MASKS = {
    "listed twice": ("mask_ids_unique", lambda found: found.double("masks")),
    "no image": ("mask_has_image", lambda found: found.put("masks", a_mask(found), sample_id="nobody")),
    "class of another id": ("mask_name", lambda found: found.put("masks", a_mask(found), class_id=77)),
    "other instance": ("mask_name", lambda found: found.put("masks", a_mask(found), instance=5)),
    "runs cut short": ("mask_unpacks", lambda found: found.put("masks", a_mask(found), rle="1234")),
    "turned": ("mask_size", lambda found: turned(found, oblong(found))),
    "empty": ("mask_not_empty", lambda found: found.draw(a_mask(found), np.zeros_like(found.mask(a_mask(found))))),
    "other area": ("mask_area_noted", lambda found: found.put("masks", a_mask(found), area=1)),
    "two pixels": ("mask_not_tiny", lambda found: tiny(found, a_mask(found))),
    "inverted": ("mask_not_inverted", lambda found: found.draw(a_mask(found), np.ones_like(found.mask(a_mask(found))))),
    "noise": ("mask_not_scattered", lambda found: checkered(found, a_mask(found))),
}


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
    unique = promise.endswith("unique") or promise == "case_in_one_split"
    assert len(alarms[promise]) == 1 or unique, "and no other row"
