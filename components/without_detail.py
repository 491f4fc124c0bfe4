"""Control for stages 1 and 2: the same training with the fusion gates held at zero, so that the ViT sees alone.

What it scores less than the real thing is what the high-resolution branch is worth.
"""

from unimed import step
from unimed.config import LoraTraining, Optimisation
from unimed.data import samples
from unimed.hashes import dvc_hashes
from unimed.model import adapters, assemble, weights
from unimed.step import Input, Output
from unimed.train import loop
from unimed.train.batch import Collator


def run(
    captions: Input, data: Input, shards: Input, foundation: Input, expert: Output, seed: int, align: Optimisation, vqa_expert: LoraTraining
) -> None:
    """Align without fusions, train the expert on it, and store projector and adapter together."""
    made = assemble.foundation(foundation)
    loop.train_only(made.model, ["model.projector"])
    loop.fit(
        made.model, samples.read(captions, shards, split="train", seed=seed), Collator(made.processor), align, seed, "without_detail_align"
    )
    language = made.model.model.language_model
    names = adapters.add(language, "vqa", vqa_expert.rank, vqa_expert.scaling, assemble.EXPERT_TARGETS)
    loop.train_only(made.model, [f"model.language_model.{name}" for name in names])
    questions = samples.read(data, shards, split="train", turns=vqa_expert.turns, seed=seed)
    history = loop.fit(made.model, questions, Collator(made.processor), vqa_expert, seed, "without_detail")
    adapters.write(expert, adapters.taken(language, "vqa"))
    trained, taught = weights.named(made.model, assemble.ALIGNED), dvc_hashes({"alignment": captions, "vqa": data})
    weights.write(expert, trained, {"foundation": foundation}, data=taught, history=history)


if __name__ == "__main__":
    step.main(run)
