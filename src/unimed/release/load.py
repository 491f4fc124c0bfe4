"""What `unimed.load` gives: a release or a model folder, put together and ready to answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from unimed import answering, mlflow_server, predict
from unimed.answering import Question, Reply
from unimed.model import artifacts
from unimed.model.assemble import Assembled
from unimed.release import fetch
from unimed.release.manifest import MANIFEST


@dataclass(frozen=True)
class Loaded:
    """A model that answers.

    `version` is its number in the registry, empty for a folder; `manifest` is its release.json or manifest.json.
    """

    made: Assembled
    version: str
    manifest: dict[str, Any]

    def answer(self, image: Image.Image | Path | str, question: str, regions: Sequence[str] = (), think: bool = False) -> Reply:
        """The reply to a question about an image or image file; regions are `box:x,y,w,h` or `point:x,y` in pixels.

        Raises InputError for an image or a region that cannot be used.
        """
        shown = answering.upright(image, "image") if isinstance(image, Image.Image) else predict.open_image(Path(image))
        asked = Question(shown, question, tuple(answering.region(text, shown) for text in regions), think)
        [reply] = answering.answer(self.made, [asked], answering.MAX_NEW_TOKENS)
        return reply


def load(uri: str, cache: Path | None = None) -> Loaded:
    """The model at an address of MLflow's registry, or of a folder of a release, an expert, a router or a reasoner."""
    if (Path(uri) / artifacts.MANIFEST).is_file() and not (Path(uri) / MANIFEST).is_file():
        made = predict.load(Path(uri))
        return Loaded(made, "", artifacts.verify(Path(uri)))
    found = fetch.fetch(uri, mlflow_server.configured(), cache)
    return Loaded(predict.load(found.folder / "reasoner"), found.version, found.manifest)
