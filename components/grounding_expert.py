"""Stage 3, grounding_expert: a LoRA that says `<SEG>`, and the path from there to a mask.

Starts, like the other expert, from the aligned model. The mask encoder with its adapters stays frozen.
"""

from unimed import step
from unimed.config import GroundingTraining
from unimed.data import samples
from unimed.model import adapters, artifacts, assemble
from unimed.step import Input, Output
from unimed.train import loop
from unimed.train.batch import Collator


def run(
    data: Input, shards: Input, foundation: Input, aligned: Input, expert: Output, seed: int, grounding_expert: GroundingTraining
) -> None:
    """Train adapter, `<SEG>` rows, projection and mask decoder on prompts for masks, absent targets among them."""
    made = assemble.aligned(foundation, aligned)
    language = made.model.model.language_model
    names = adapters.add(language, "grounding", grounding_expert.rank, grounding_expert.scaling, assemble.EXPERT_TARGETS)
    loop.train_only(made.model, [*(f"model.language_model.{name}" for name in names), *assemble.GROUNDING])
    prompts = samples.read(data, shards, split="train", turns=grounding_expert.turns, seed=seed)
    collator, weights = Collator(made.processor), grounding_expert.mask_loss
    history = loop.fit(made.model, prompts, collator, grounding_expert, seed, "grounding_expert", mask_loss=weights)
    adapters.write(expert, adapters.taken(language, "grounding"))
    parents = {"foundation": foundation, "aligned": aligned}
    artifacts.write(expert, artifacts.named(made.model, assemble.GROUNDING), parents, history=history)


if __name__ == "__main__":
    step.main(run, registers="unimed-grounding-expert")
