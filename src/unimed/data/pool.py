"""Many small jobs on all cores, with results in the order of the jobs."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
_WORTH_A_WORKER = 256
"""Jobs of about a millisecond each that pay for starting one more process."""
_BATCH = 4096
"""Jobs handed out at once; bounds how many results wait in memory."""


def ordered(function: Callable[[Job], Result], jobs: Sequence[Job], worth: int = _WORTH_A_WORKER) -> Iterator[Result]:
    """The result of each job, in order; in this process when there are fewer than twice the jobs that are `worth` a process."""
    workers = min(os.cpu_count() or 1, len(jobs) // worth)
    if workers < 2:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        for start in range(0, len(jobs), _BATCH):
            yield from pool.map(function, jobs[start : start + _BATCH], chunksize=max(worth // 8, 1))
