"""The ten worst cases of the finished model, kept so that who judges a release sees them without the data."""

import base64
import io
import json
from pathlib import Path

import pandas as pd
from PIL import Image, UnidentifiedImageError

from unimed.data.masks import union
from unimed.data.streamed import load
from unimed.data.tables import write_json
from unimed.errors import InputError
from unimed.eval import cases
from unimed.eval.cases import Cells, Images
from unimed.eval.overlays import PREDICTION, REGION, TRUTH, marked

LIST, FOLDER = "worst.json", "worst"
STAGE = "grpo"
"""What is released is the model of the last stage."""

_COUNT, _LONGEST_PX, _COLOURS = 10, 384, 128
_MOST_PX, _MOST_BYTES = 512, 2**20
_TEXTS = ("task", "question_type", "modality", "question", "truth", "prediction")
"""What is told of a case beside its score; neither patient nor image is named."""


def write(folder: Path, predictions: pd.DataFrame, images: Images) -> None:
    """Write worst.json and worst/NN.png: tasks in turn, each from its lowest score on; the same input gives the same bytes."""
    of_model = predictions[(predictions["stage"] == STAGE) & (predictions["variant"] == "")]
    records: list[Cells] = [{str(name): cell for name, cell in row.items()} for row in of_model.to_dict("records")]
    chosen = cases.worst(records, "task", _COUNT)
    (folder / FOLDER).mkdir(parents=True)
    for number, row in enumerate(chosen):
        _drawn(row, images(row["sample_id"])).save(folder / _picture(number), format="PNG", optimize=True)
    told = [{name: cases.short(str(row[name])) for name in _TEXTS} | {"score": round(float(row["score"]), 4)} for row in chosen]
    write_json(folder / LIST, told)


def _picture(number: int) -> str:
    return f"{FOLDER}/{number + 1:02}.png"


def _drawn(row: Cells, image: Image.Image) -> Image.Image:
    """The image with the region asked about, the true and the predicted mask outlined, in few enough colours to be small.

    They are chosen to cover all that occur: the usual choice averages thin outlines away.
    """
    columns = (("region_rle", REGION), ("truth_rle", TRUTH), ("answer_rle", PREDICTION))
    marks = [(union(json.loads(row[column]), row["height"], row["width"]), colour) for column, colour in columns]
    return marked(image, marks, _LONGEST_PX).quantize(_COLOURS, Image.Quantize.MAXCOVERAGE)


def read(folder: Path) -> list[Cells]:
    """What `write` left, each case with its picture as `uri`. Raises InputError for anything else."""
    told = load(folder / LIST)
    if not isinstance(told, list) or not all(_is_case(case) for case in told):
        raise InputError(f"{folder / LIST}: expected the worst cases that evaluate writes, found other JSON")
    return [{**case, "uri": _uri(folder / _picture(number))} for number, case in enumerate(told)]


def _is_case(case: object) -> bool:
    return isinstance(case, dict) and all(isinstance(case.get(name), str) for name in _TEXTS) and isinstance(case.get("score"), float)


def _uri(file: Path) -> str:
    """The picture as text for a page, if it is a small PNG."""
    try:
        content = b"" if file.is_symlink() or file.stat().st_size > _MOST_BYTES else file.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            size = image.size
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{file}: expected a PNG that evaluate wrote, found {_fault(error)}") from error
    if max(size) > _MOST_PX:
        raise InputError(f"{file}: expected at most {_MOST_PX} pixels a side, found {size[0]} x {size[1]}")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _fault(error: OSError) -> str:
    return error.strerror or "something else"
