"""A release as an MLflow pyfunc, models-from-code: what MLflow's own loader needs beside release.json."""

import shutil
from pathlib import Path

from unimed.data.names import IMAGE_ENDINGS
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
        "router": "JSON: the share of each expert in each layer, in this answer",
    }
    model = Model(utc_time_created=_NO_TIME, model_uuid=None, signature=ModelSignature(inputs, outputs), metadata=about)
    artifacts = {"release": {"path": MANIFEST, "uri": MANIFEST}}
    pyfunc.add_to_model(model, loader_module="mlflow.pyfunc.model", model_code_path=CODE, artifacts=artifacts)
    model.save(str(folder / "MLmodel"))
