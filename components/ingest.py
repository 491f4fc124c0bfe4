"""A download in the layout of SA-Med2D-20M and MeCoVQA becomes image shards and tables, split by case; what is faulty is set aside."""

from unimed import step
from unimed.config import Ingest
from unimed.data import exclusions as excluded
from unimed.data.ingest import write
from unimed.step import Input, Output


def run(raw: Input, exclusions: Input, shards: Output, tables: Output, seed: int, ingest: Ingest) -> None:
    """Pack the images that annotations of `raw` name into `shards` and everything said about them into `tables`."""
    write(raw, shards, tables, seed=seed, ingest=ingest, excluded=excluded.read(exclusions))


if __name__ == "__main__":
    step.main(run)
