"""The page of code that MLflow's own loader runs for a release: it asks the library for the release, hash by hash, and answers rows."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

import unimed
from unimed import answering
from unimed.release import fetch, row
from unimed.release.parts import RELEASE
from unimed.settings import Tracking


class Release(PythonModel):
    """A release behind MLflow's interface; columns are those of its signature."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the registered version whose manifest came with this page."""
        settings = Tracking(uri=mlflow.get_tracking_uri())
        self.loaded = unimed.load(fetch.registered(Path(context.artifacts["release"]), RELEASE, settings))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """A row of answer, reasoning, masks and router for each row asked, all in one batch."""
        asked = [row.question({str(name): value for name, value in each.items()}) for each in model_input.to_dict("records")]
        replies = answering.answer(self.loaded.made, asked, answering.MAX_NEW_TOKENS)
        return pd.DataFrame([{name: _text(value) for name, value in asdict(reply).items()} for reply in replies])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


set_model(Release())
