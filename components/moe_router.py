"""Stage 4, moe_router: both experts beside one language model, and routers that learn when to use which.

Only the routers train. MedPLIB goes on training experts and embeddings here, so its routing cannot be told from more training.
"""

from unimed import step
from unimed.config import MoeRouter
from unimed.data import samples
from unimed.hashes import dvc_hashes
from unimed.model import assemble, weights
from unimed.step import Input, Output
from unimed.train import loop
from unimed.train.batch import Collator
from unimed.train.mixture import Mixture


def run(
    vqa: Input, grounding: Input, shards: Input, foundation: Input, aligned: Input, vqa_expert: Input, grounding_expert: Input,
    router: Output, seed: int, moe_router: MoeRouter,
) -> None:  # fmt: skip
    """Train the routers on both experts' tasks."""
    made = assemble.routed(foundation, aligned, {"vqa": vqa_expert, "grounding": grounding_expert}, moe_router)
    routers = [name for name, _ in made.model.named_modules() if name.endswith(".router")]
    loop.train_only(made.model, [f"{name}.linear" for name in routers])
    questions = samples.read(vqa, shards, split="train", turns=moe_router.turns, seed=seed)
    prompts = samples.read(grounding, shards, split="train", turns=moe_router.turns, seed=seed)
    mixture = Mixture(questions, [(prompts, moe_router.grounding_share)], seed)
    collator = Collator(made.processor)
    history = loop.fit(made.model, mixture, collator, moe_router, seed, "moe_router", moe_router.mask_loss, moe_router)
    parents = {"foundation": foundation, "aligned": aligned, "vqa": vqa_expert, "grounding": grounding_expert}
    data, settings = dvc_hashes({"vqa": vqa, "grounding": grounding}), moe_router.model_dump(mode="json")
    weights.write(router, weights.named(made.model, routers), parents, data=data, history=history, moe_router=settings)


if __name__ == "__main__":
    step.main(run, registers="unimed-router")
