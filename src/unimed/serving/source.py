"""Where a server's releases come from."""

from pathlib import Path

from unimed import predict
from unimed.errors import InputError
from unimed.model import artifacts
from unimed.model.assemble import Assembled
from unimed.serving.follow import Source


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
