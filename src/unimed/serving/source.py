"""Where a server's releases come from: the registry, or a folder."""

from pathlib import Path

from unimed import mlflow_server, predict
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.model.assemble import Assembled
from unimed.release import fetch
from unimed.serving.follow import Source


def registry(address: str) -> Source:
    """The releases that an address in MLflow's registry means, one after the other; a version is its number."""
    settings, name = mlflow_server.configured(), fetch.split(address)[0]

    def load(version: str) -> Assembled:
        return predict.load(fetch.fetch(f"models:/{name}/{version}", settings).folder / "reasoner")

    return Source(lambda: fetch.resolve(address, settings), load)


def folder(place: Path) -> Source:
    """The folder of a stage, its parts beside it; a version is the hash of its manifest, which covers all of them."""

    def where() -> str:
        manifest = place / artifacts.MANIFEST
        if not manifest.is_file():
            raise InputError(f"{place}: expected a model folder with a {artifacts.MANIFEST}, found none")
        return artifacts.sha256(manifest)

    def load(version: str) -> Assembled:
        made = predict.load(place)
        if (found := where()) != version:
            raise InputError(f"{place}: expected manifest sha256 {version}, found {found}: it changed while it was loaded")
        return made

    return Source(where, load)
