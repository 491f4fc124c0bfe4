"""The gate before a release: quality, data, provenance and safety of trained models. A rejection is a result, not a failure.

Runs after the stages and is none of them: its answer is about what lies in these folders now, so nothing caches it.
"""

import logging

from unimed import step
from unimed.release import gate as gates
from unimed.release import registered
from unimed.settings import Gate, Tracking
from unimed.step import Input, Output

log = logging.getLogger("gate")


def run(
    alignment: Input, vqa: Input, grounding: Input, reasoning: Input, foundation: Input, aligned: Input, vqa_expert: Input,
    grounding_expert: Input, router: Input, reasoner: Input, report: Input, verdict: Output, gate: Gate, tracking: Tracking,
) -> None:  # fmt: skip
    """Hold models to the bounds of `gate` and to the champion; writes verdict.json, scores.parquet and report.html."""
    champion = registered.champion(tracking)
    data = {"alignment": alignment, "vqa": vqa, "grounding": grounding, "reasoning": reasoning}
    experts = {"vqa_expert": vqa_expert, "grounding_expert": grounding_expert}
    models = {"foundation": foundation, "aligned": aligned, **experts, "router": router, "reasoner": reasoner}
    found = gates.write(verdict, gates.Candidate(data, models, report), gate, champion)
    for reason in found["reasons"]:
        log.warning("%s", reason)
    asked, failed = len(found["checks"]), len(found["reasons"])
    log.info("%s: %d of %d checks passed", "passed" if found["passed"] else "rejected", asked - failed, asked)


if __name__ == "__main__":
    step.main(run)
