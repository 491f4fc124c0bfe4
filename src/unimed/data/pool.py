"""Many small jobs on all cores, with results in the order of the jobs and few of either in memory."""

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
_WORTH_A_WORKER = 256
"""Jobs of about a millisecond each that pay for starting one more process."""
_BATCH = 8
"""Jobs handed to a process at once."""

_AHEAD = 6
"""Batches of each process that are begun before the first of them is taken: what a process has to do while a shard is flushed."""


def ordered(function: Callable[[Job], Result], jobs: Iterable[Job], worth: int = _WORTH_A_WORKER) -> Iterator[Result]:
    """The result of each job, in order; in this process when there are fewer than twice the jobs that are `worth` a process."""
    return batched(partial(_each, function), jobs, worth)


def _each(function: Callable[[Job], Result], jobs: list[Job]) -> list[Result]:
    return [function(job) for job in jobs]


def batched(function: Callable[[list[Job]], list[Result]], jobs: Iterable[Job], worth: int = _WORTH_A_WORKER) -> Iterator[Result]:
    """The same of a function that takes several jobs at once and gives their results."""
    jobs = iter(jobs)
    cores = os.cpu_count() or 1
    first = list(islice(jobs, cores * worth))
    workers = min(cores, len(first) // worth)
    batches = _batches(chain(first, jobs), max(1, min(worth, _BATCH)))
    if workers < 2:
        yield from chain.from_iterable(map(function, batches))
        return
    # Not forked from here: this process has threads, whose locks a fork would copy as they happen to be. What is forked has none yet
    # but has imported what our jobs need, once for all workers of all pools.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in sys.modules if name.startswith(f"{__package__}.")])
    pool = ProcessPoolExecutor(workers, context, initializer=_end_with_parent)
    try:
        waiting: deque[Future[list[Result]]] = deque()
        for batch in batches:
            waiting.append(pool.submit(function, batch))
            if len(waiting) > _AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(jobs: Iterator[Job], size: int) -> Iterator[list[Job]]:
    while batch := list(islice(jobs, size)):
        yield batch


def _end_with_parent() -> None:
    """Have this process end when the one it works for was killed, which leaves no other trace here."""
    parent = multiprocessing.parent_process()
    if parent:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
