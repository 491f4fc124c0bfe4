"""The foundation: every frozen part of the model, pinned by hash.

As shipped it is a stand-in: small towers built here and briefly shown phantoms of their own, in place of internet pre-training.
"""

import json

from unimed import step
from unimed.config import Foundation, Vlm
from unimed.model import assemble
from unimed.step import Output
from unimed.train import rehearsal


def run(models: Output, seed: int, vlm: Vlm, foundation: Foundation) -> None:
    """Build the towers and the language model, teach each what its stand-in needs, and store them sealed."""
    made = rehearsal.build(vlm, foundation, seed)
    history = rehearsal.teach(made, foundation, seed)
    models.mkdir(parents=True)
    (models / "history.json").write_text(json.dumps(history) + "\n")
    assemble.write_foundation(models, made)


if __name__ == "__main__":
    step.main(run)
