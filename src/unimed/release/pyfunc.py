"""A release as an MLflow pyfunc, models-from-code: what MLflow needs beside release.json, and what a row of a request asks."""

import base64
import binascii
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from unimed import answering
from unimed.answering import Question
from unimed.data import images
from unimed.data.names import IMAGE_ENDINGS
from unimed.errors import InputError
from unimed.predict import MAX_PIXELS
from unimed.release.manifest import MANIFEST

CODE = "pyfunc_model.py"
IMAGES = "UNIMED_IMAGE_ROOT"
"""Environment variable with the one folder below which a request may name image files; without it images come as base64 only."""

_NO_TIME = "1970-01-01 00:00:00"
"""The same release gives the same bytes, whenever it is made."""


def write(folder: Path) -> None:
    """Write MLmodel and the page of code beside a release.json; the same for every release."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    shutil.copyfile(Path(__file__).with_name(CODE), folder / CODE)
    text = DataType.string
    optional = [ColSpec(text, "region", required=False), ColSpec(DataType.boolean, "think", required=False)]
    inputs = Schema([ColSpec(text, "image"), ColSpec(text, "question"), *optional])
    outputs = Schema([ColSpec(text, name) for name in ("answer", "reasoning", "masks", "router")])
    about = {
        "image": f"base64 of a PNG or JPEG; a path ending in {', '.join(IMAGE_ENDINGS)} only below the folder {IMAGES} of whoever loads it",
        "region": "box:x,y,w,h or point:x,y in pixels; several are separated by spaces",
        "masks": "JSON: a COCO RLE with its size for each <SEG> of the answer",
        "router": "JSON: the share of each expert in each layer, over all rows of the request",
    }
    model = Model(utc_time_created=_NO_TIME, model_uuid=None, signature=ModelSignature(inputs, outputs), metadata=about)
    artifacts = {"release": {"path": MANIFEST, "uri": MANIFEST}}
    pyfunc.add_to_model(model, loader_module="mlflow.pyfunc.model", model_code_path=CODE, artifacts=artifacts)
    model.save(str(folder / "MLmodel"))


def question(row: Mapping[str, Any]) -> Question:
    """What a row asks. Raises InputError for an image or a region that cannot be used."""
    image = _image(str(row["image"]))
    regions = tuple(answering.region(text, image) for text in _given(row.get("region"), "").split())
    return Question(image, str(row["question"]), regions, bool(_given(row.get("think"), False)))


def _given(value: Any, otherwise: Any) -> Any:
    """The value of an optional column, where a row without it may hold None or NaN."""
    return otherwise if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _image(text: str) -> Image.Image:
    if text.lower().endswith(IMAGE_ENDINGS):  # a dot is in no base64
        return images.rgb(images.decode(_file(text).read_bytes(), text, MAX_PIXELS))
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"image: expected a PNG or JPEG as base64, found {len(text)} characters that are none") from None
    return images.rgb(images.decode(content, "image", MAX_PIXELS))


def _file(text: str) -> Path:
    """The file below UNIMED_IMAGE_ROOT that a text names."""
    root = os.environ.get(IMAGES)
    if not root:
        raise InputError(f"image: expected base64, found a path; paths are read only below the folder {IMAGES}, which is not set")
    file = (Path(root) / text).resolve()
    if not file.is_relative_to(Path(root).resolve()) or not file.is_file():
        raise InputError(f"image {text}: expected a file below the folder {IMAGES}, found none")
    return file
