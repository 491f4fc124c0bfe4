"""Stage 2, vqa_expert: a LoRA on the language model that answers questions about an image or a marked region.

Leaves out what MedPLIB trains besides: embeddings, norms and the output layer stay frozen.
"""

from unimed import step
from unimed.config import LoraTraining
from unimed.data import samples
from unimed.hashes import dvc_hashes
from unimed.model import adapters, artifacts, assemble
from unimed.step import Input, Output
from unimed.train import loop
from unimed.train.batch import Collator


def run(data: Input, shards: Input, foundation: Input, aligned: Input, expert: Output, seed: int, vqa_expert: LoraTraining) -> None:
    """Train the expert on questions and answers, starting from the aligned model."""
    made = assemble.aligned(foundation, aligned)
    language = made.model.model.language_model
    names = adapters.add(language, "vqa", vqa_expert.rank, vqa_expert.scaling, assemble.EXPERT_TARGETS)
    loop.train_only(made.model, [f"model.language_model.{name}" for name in names])
    questions = samples.read(data, shards, split="train", turns=vqa_expert.turns, seed=seed)
    history = loop.fit(made.model, questions, Collator(made.processor), vqa_expert, seed, "vqa_expert")
    adapters.write(expert, adapters.taken(language, "vqa"))
    artifacts.seal(expert, {"foundation": foundation, "aligned": aligned}, data=dvc_hashes({"vqa": data}), history=history)


if __name__ == "__main__":
    step.main(run, registers="unimed-vqa-expert")
