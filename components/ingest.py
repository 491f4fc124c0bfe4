"""A download in the layout of SA-Med2D-20M and MeCoVQA becomes image shards and tables, split by case; what is faulty is set aside."""

from unimed import step
from unimed.config import Ingest
from unimed.data import exclusions
from unimed.data.ingest import write
from unimed.step import Input, Output


def run(raw: Input, shards: Output, tables: Output, seed: int, ingest: Ingest) -> None:
    """Pack the images that annotations of `raw` name into `shards` and everything said about them into `tables`.

    Cases in exclusions.csv are left out; it lies beside dvc.yaml and counts as code, so a case that is added there changes every key.
    """
    write(raw, shards, tables, seed=seed, ingest=ingest, excluded=exclusions.read(exclusions.FILE))


if __name__ == "__main__":
    step.main(run)
