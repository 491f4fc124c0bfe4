"""Stage 3, grounding_expert: a LoRA that says `<SEG>` when it is asked to, and the path from there to a mask.

Starts, like the other expert, from the aligned model. The mask encoder with its adapters stays frozen.
"""

from unimed import step
from unimed.config import GroundingTraining
from unimed.data import samples
from unimed.hashes import dvc_hashes
from unimed.model import adapters, assemble, weights
from unimed.step import Input, Output
from unimed.train import loop
from unimed.train.batch import Collator
from unimed.train.mixture import Mixture


def run(
    vqa: Input, grounding: Input, shards: Input, foundation: Input, aligned: Input, expert: Output, seed: int,
    grounding_expert: GroundingTraining,
) -> None:  # fmt: skip
    """Train adapter, `<SEG>` rows, projection and mask decoder on prompts for masks, absent targets and plain questions among them."""
    made = assemble.aligned(foundation, aligned)
    language = made.model.model.language_model
    names = adapters.add(language, "grounding", grounding_expert.rank, grounding_expert.scaling, assemble.EXPERT_TARGETS)
    loop.train_only(made.model, [*(f"model.language_model.{name}" for name in names), *assemble.GROUNDING])
    questions = samples.read(vqa, shards, split="train", turns=grounding_expert.turns, seed=seed)
    prompts = samples.read(grounding, shards, split="train", turns=grounding_expert.turns, seed=seed)
    mixture = Mixture(prompts, [(questions, grounding_expert.vqa_share)], seed)
    collator, loss = Collator(made.processor), grounding_expert.mask_loss
    history = loop.fit(made.model, mixture, collator, grounding_expert, seed, "grounding_expert", mask_loss=loss)
    adapters.write(expert, adapters.taken(language, "grounding"))
    parents = {"foundation": foundation, "aligned": aligned}
    data = dvc_hashes({"vqa": vqa, "grounding": grounding})
    weights.write(expert, weights.named(made.model, assemble.GROUNDING), parents, data=data, history=history)


if __name__ == "__main__":
    step.main(run, registers="unimed-grounding-expert")
