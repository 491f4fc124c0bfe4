"""Every stage on held-out patients: scores beside their baselines, predictions as a table, and a report with pictures."""

import logging

from unimed import step
from unimed.config import Evaluate
from unimed.eval import publish
from unimed.eval.examination import Examination, Folders
from unimed.step import Input, Output

log = logging.getLogger("evaluate")


def run(
    alignment: Input, vqa: Input, grounding: Input, reasoning: Input, shards: Input, foundation: Input, aligned: Input,
    vqa_expert: Input, without_detail: Input, grounding_expert: Input, router: Input, reasoner: Input, report: Output,
    seed: int, evaluate: Evaluate,
) -> None:  # fmt: skip
    """Score all models on the test split and write ladder.json, scored.json, predictions.parquet, report.html and the worst cases."""
    data = {"alignment": alignment, "vqa": vqa, "grounding": grounding, "reasoning": reasoning}
    folders = Folders(data, shards, foundation, aligned, vqa_expert, without_detail, grounding_expert, router, reasoner)
    log.info("\n%s", publish.write(report, Examination(folders, evaluate, seed)))


if __name__ == "__main__":
    step.main(run)
