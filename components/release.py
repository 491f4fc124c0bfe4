"""The release of what a gate let through: a manifest of its exact parts, registered as a version of `unimed-medvlm`, alias `challenger`.

Runs after the gate and is no stage: it changes the registry. That a challenger becomes champion is a person's later step.
"""

from pathlib import Path

from unimed import job, step
from unimed.data.tables import write_json
from unimed.release import manifest, papers, register
from unimed.settings import Tracking
from unimed.step import Input, Output


def run(
    verdict: Input, alignment: Input, vqa: Input, grounding: Input, reasoning: Input, foundation: Input, aligned: Input, vqa_expert: Input,
    grounding_expert: Input, router: Input, reasoner: Input, release: Output, tracking: Tracking,
) -> None:  # fmt: skip
    """Write release.json with its cards and bill of materials, register it, and write registered.json: names and versions."""
    data = {"alignment": alignment, "vqa": vqa, "grounding": grounding, "reasoning": reasoning}
    experts = {"vqa_expert": vqa_expert, "grounding_expert": grounding_expert}
    parts = {"foundation": foundation, "aligned": aligned, **experts, "router": router, "reasoner": reasoner}
    revision = job.revision()
    written = manifest.write(release, verdict, parts, revision)
    papers.write(release, verdict, data, Path("requirements.lock"))
    if versions := register.register(written, parts, revision, tracking):
        write_json(release / manifest.REGISTERED_AS, versions)


if __name__ == "__main__":
    step.main(run)
