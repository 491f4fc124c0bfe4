"""Stage 5, grpo: one more adapter on the routed model, shown how to reason and then rewarded for form, right answers and masks.

Leaves out MedVLM-R1's pull toward a reference model unless kl_weight asks for it; experts, routers and mask decoder stay frozen.
"""

from unimed import step
from unimed.data import samples
from unimed.hashes import dvc_hashes
from unimed.model import adapters, artifacts, assemble
from unimed.rewarding import Grpo
from unimed.rl import trainer
from unimed.step import Input, Output
from unimed.train import loop, zero


def run(
    reasoning: Input, vqa: Input, grounding: Input, shards: Input, foundation: Input, aligned: Input, vqa_expert: Input,
    grounding_expert: Input, router: Input, reasoner: Output, seed: int, grpo: Grpo,
) -> None:  # fmt: skip
    """Train the reasoner on problems with options and, so that the experts' tasks are kept, on questions and prompts for masks."""
    zero.refuse(grpo.deepspeed, grpo.cold_start.deepspeed)
    experts = {"vqa": vqa_expert, "grounding": grounding_expert}
    problems = samples.read(reasoning, shards, split="train", seed=seed)
    questions = samples.read(vqa, shards, split="train", seed=seed)
    prompts = samples.read(grounding, shards, split="train", seed=seed)
    made = assemble.trained_router(foundation, aligned, experts, router)
    language = made.model.model.language_model
    names = adapters.add(language, "reasoner", grpo.rank, grpo.scaling, assemble.EXPERT_TARGETS)
    loop.train_only(made.model, [f"model.language_model.{name}" for name in names])
    shown = trainer.cold_start(made.model, made.processor, problems, questions, prompts, grpo, seed)
    adapters.write(reasoner / "cold_start", adapters.taken(language, "reasoner"))
    rewarded = trainer.reinforce(made.model, made.processor, problems, prompts, grpo, seed)
    adapters.write(reasoner, adapters.taken(language, "reasoner"))
    parents = {"foundation": foundation, "aligned": aligned, **experts, "router": router}
    history = [{"phase": phase, **entry} for phase, entries in (("cold_start", shown), ("grpo", rewarded)) for entry in entries]
    data = dvc_hashes({"reasoning": reasoning, "vqa": vqa, "grounding": grounding})
    artifacts.seal(reasoner, parents, data=data, history=history)


if __name__ == "__main__":
    step.main(run, registers="unimed-reasoner")
