"""The foundation: every frozen part of the model, pinned by hash.

From checkpoints that params.yaml names; or, as shipped, a stand-in: small towers built here and briefly shown phantoms of their own, in
place of internet pre-training.
"""

import json
from pathlib import Path

from unimed import step
from unimed.config import Vlm
from unimed.errors import InputError
from unimed.hashes import dvc_hash
from unimed.model import assemble, foundations
from unimed.origins import Checkpoints, Foundation, StandIn
from unimed.step import Output
from unimed.train import rehearsal


def run(models: Output, seed: int, vlm: Vlm, foundation: Foundation) -> None:
    """Store the towers, the language model and the mask model sealed: from checkpoints, or built and taught what a stand-in needs."""
    if isinstance(foundation, StandIn):
        made = rehearsal.build(vlm, foundation, seed)
        history = rehearsal.teach(made, foundation, seed)
        models.mkdir(parents=True)
        (models / "history.json").write_text(json.dumps(history) + "\n")
        assemble.write_foundation(models, made)
    else:
        if given := [name for name in ("vision", "detail", "text") if getattr(vlm, name) is not None]:
            raise InputError(f"params.yaml: vlm.{given[0]} must not be given where foundation names checkpoints, which say it themselves")
        places = pinned(foundation.checkpoints)
        foundations.write(models, vlm, places, checkpoints=foundation.checkpoints.model_dump(mode="json"))


def pinned(checkpoints: Checkpoints) -> dict[str, Path]:
    """Where each checkpoint lies. Raises InputError, with the hashes found, unless all are there and as params.yaml pins them."""
    places = {name: getattr(checkpoints, name).path for name in Checkpoints.model_fields}
    if missing := [f"foundation.from.{name}: expected {path}, found nothing" for name, path in places.items() if not path.exists()]:
        raise InputError("params.yaml: " + "; ".join(missing))
    found = {name: dvc_hash(path) for name, path in places.items()}
    wrong = {name: digest for name, digest in found.items() if getattr(checkpoints, name).md5 != digest}
    if wrong:
        faults = [f"foundation.from.{name}.md5 is {getattr(checkpoints, name).md5}, {places[name]} has {wrong[name]}" for name in wrong]
        raise InputError(f"params.yaml: {'; '.join(faults)}; write the hash there once you trust the files")
    return places


if __name__ == "__main__":
    step.main(run)
