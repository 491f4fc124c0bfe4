"""The gate before training: every image and mask of a subset is opened and held against the data contract."""

from unimed import step
from unimed.config import Validate
from unimed.data.contract import write
from unimed.step import Input, Output


def run(subset: Input, shards: Input, valid: Output, validate: Validate) -> None:
    """Pass on the rows of `subset` that keep the contract, with a verdict and a report; fail when too few do."""
    write(subset, shards, valid, bounds=validate)


if __name__ == "__main__":
    step.main(run)
