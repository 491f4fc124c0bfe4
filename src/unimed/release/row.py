"""What a row of a request to MLflow asks, in the columns that pyfunc.py declares."""

import base64
import binascii
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from unimed import answering
from unimed.answering import Question
from unimed.data.names import IMAGE_ENDINGS
from unimed.errors import InputError
from unimed.release.pyfunc import IMAGES


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
        return answering.picture(_file(text).read_bytes(), text)
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"image: expected a PNG or JPEG as base64, found {len(text)} characters that are none") from None
    return answering.picture(content, "image")


def _file(text: str) -> Path:
    """The file below UNIMED_IMAGE_ROOT that a text names."""
    root = os.environ.get(IMAGES)
    if not root:
        raise InputError(f"image: expected base64, found a path; paths are read only below the folder {IMAGES}, which is not set")
    file = (Path(root) / text).resolve()
    if not file.is_relative_to(Path(root).resolve()) or not file.is_file():
        raise InputError(f"image {text}: expected a file below the folder {IMAGES}, found none")
    return file
