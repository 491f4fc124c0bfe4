"""Questions of many clients, answered together: one thread runs the model, questions join its batch as soon as there is room."""

import asyncio
import logging
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import takewhile

from unimed.eval.decoding import Decoding, Row
from unimed.serving.follow import Release
from unimed.serving.limits import Limits
from unimed.serving.metrics import Metrics

log = logging.getLogger("serving")


class Job:
    """A question on its way, bound to the release that read it; made and heard in the event loop.

    `gone` is set when nobody waits for the answer any more.
    """

    def __init__(self, release: Release, row: Row, streams: bool):
        self.release, self.row, self.streams = release, row, streams
        self.gone = False
        self.since = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[str | Exception | None] = asyncio.Queue()

    def tell(self, news: str | Exception | None) -> None:
        """Hand over, from any thread, the text so far, an error, or None for the end."""
        with suppress(RuntimeError):  # a loop that has closed has nobody who listens
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    async def text(self) -> str | None:
        """The text so far when it has grown, None when the answer has ended. Raises what kept the model from answering."""
        news = await self._news.get()
        if isinstance(news, Exception):
            raise news
        return news


class Batcher:
    """The queue and the thread behind it.

    Nobody waits for company: an idle model starts on the first question at once, and what arrives meanwhile joins after the next word.
    """

    def __init__(self, limits: Limits, metrics: Metrics):
        self._limits, self._metrics = limits, metrics
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="batch", daemon=True)
        self._running: list[Job] = []

    def start(self) -> None:
        """Answer in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what has been put, and return."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether there is anybody to answer."""
        return self._thread.is_alive()

    def put(self, job: Job) -> None:
        """Line up a question."""
        with self._changed:
            self._waiting.append(job)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def _work(self) -> None:
        decoding: Decoding | None = None
        while (joining := self._joining()) is not None:
            try:
                if joining and not self._running:
                    decoding = Decoding(joining[0].release.made, self._limits.max_new_tokens)
                self._running += joining
                assert decoding is not None
                self._advance(decoding, joining)
            except Exception as error:  # it belongs to these questions; the next ones get their chance
                log.exception("a batch of %d questions failed", len(self._running))
                for job in self._running:
                    job.tell(error)
                self._running = []
            if not self._running:
                decoding = None  # and with it a release that was replaced

    def _joining(self) -> list[Job] | None:
        """Waits until there is something to do; the questions that join now, or None when all is done and there will be no more."""
        with self._changed:
            while True:
                self._waiting = deque(job for job in self._waiting if not job.gone)
                if self._waiting or self._running:
                    break
                if self._stopping:
                    return None
                self._changed.wait()
            joining = [self._waiting.popleft() for _ in range(self._places())]
            self._metrics.waiting.set(len(self._waiting))
        for job in joining:
            self._metrics.waited.observe(time.monotonic() - job.since)
        return joining

    def _places(self) -> int:
        """How many of those that wait join now: only questions of the release that is at work, and when it is busy a few at a time.

        Reading several prompts in one pass takes hardly longer than reading one.
        """
        release = (self._running or self._waiting)[0].release
        wanting = len(list(takewhile(lambda job: job.release is release, self._waiting)))
        free = self._limits.batch - len(self._running)
        return min(wanting, free) if wanting <= free or free >= self._limits.batch // 4 else 0

    def _advance(self, decoding: Decoding, joining: list[Job]) -> None:
        """One word more for everybody who still listens."""
        listening = [job for job in self._running if not job.gone]
        decoding.leave([job.row for job in self._running if job not in listening])
        self._running = listening
        ended = decoding.advance([job.row for job in joining if job in listening])
        if listening:
            self._metrics.rows.observe(len(listening))
            self._metrics.words.inc(len(listening))
        for job in self._running:
            if job.streams:
                job.tell(decoding.said(job.row))
            if job.row in ended:
                job.tell(None)
        self._running = [job for job in self._running if job.row not in ended]
