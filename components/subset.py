"""The conversations of one task that a run trains on, watches and is tested with: drawn evenly, never the first so many."""

from unimed import step
from unimed.config import Subsets
from unimed.data.subset import asked_of, write
from unimed.step import Input, Output


def run(tables: Input, subset: Output, task: str, seed: int, subsets: Subsets) -> None:
    """Choose the rows of `tables` for a task; images stay where they are, in the shards."""
    write(tables, subset, task=task, asked=asked_of(subsets, task), seed=seed)


if __name__ == "__main__":
    step.main(run)
