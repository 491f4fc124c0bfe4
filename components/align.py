"""Stage 1, align: fusion and projector learn to put what the frozen towers see into words the frozen language model reads."""

from unimed import step
from unimed.config import Optimisation
from unimed.data import samples
from unimed.hashes import dvc_hashes
from unimed.model import assemble, weights
from unimed.step import Input, Output
from unimed.train import loop
from unimed.train.batch import Collator


def run(data: Input, shards: Input, foundation: Input, aligned: Output, seed: int, align: Optimisation) -> None:
    """Train the fusions and the projector on captions; nothing else moves."""
    made = assemble.foundation(foundation)
    loop.train_only(made.model, assemble.ALIGNED)
    captions = samples.read(data, shards, split="train", seed=seed)
    history = loop.fit(made.model, captions, Collator(made.processor), align, seed, "align")
    parents, trained = {"foundation": foundation}, weights.named(made.model, assemble.ALIGNED)
    weights.write(aligned, trained, parents, data=dvc_hashes({"alignment": data}), history=history)


if __name__ == "__main__":
    step.main(run, registers="unimed-align")
