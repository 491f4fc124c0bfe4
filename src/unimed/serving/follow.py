"""The release that answers, kept up to date: a newer one is loaded beside it and takes over; one that fails to load changes nothing."""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from unimed.model.assemble import Assembled
from unimed.serving.metrics import Metrics

log = logging.getLogger("serving")

SECONDS = 30.0
"""Between two looks, give or take a fifth, so that many servers do not ask at once."""

LONGEST_S = 600.0
"""Between two tries to load the same version; the first comes after SECONDS, each one after twice as long."""


@dataclass(frozen=True)
class Source:
    """Where releases come from: `where` tells the present version, `load` gives the model of a version."""

    where: Callable[[], str]
    load: Callable[[str], Assembled]


@dataclass(frozen=True)
class Release:
    """A model that can answer, and its version."""

    version: str
    made: Assembled


class Follower:
    """Holds the `release` that new requests are answered by, and the `failure` to take over a newer one, if there was one.

    Loads the first release when it is made; what hinders that is the caller's to handle.
    """

    def __init__(self, source: Source, metrics: Metrics, every_s: float = SECONDS):
        self._source, self._metrics, self._every_s = source, metrics, every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)
        self._failed, self._tries, self._again = "", 0, 0.0
        self.failure: str | None = None
        self.release = self._load(source.where())

    def start(self) -> None:
        """Follow in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Follow no longer; a load that has begun is left to itself."""
        self._stopped.set()

    def _follow(self) -> None:
        while not self._stopped.wait(self._every_s * random.uniform(0.8, 1.2)):
            self.look()

    def look(self) -> None:
        """Take over the present version, if it is another one and can be loaded."""
        version = ""
        try:
            version = self._source.where()
            if version == self.release.version:
                self.failure = None
            elif version != self._failed or time.monotonic() >= self._again:
                self.release, self.failure = self._load(version), None
        except Exception as error:  # whatever it is, the release that is there goes on answering
            self._note(version, error)

    def _load(self, version: str) -> Release:
        release = Release(version, self._source.load(version))
        self._failed, self._tries = "", 0
        self._metrics.loads.labels("taken over").inc()
        self._metrics.serves(version)
        log.info("version %s answers from now on", version)
        return release

    def _note(self, version: str, error: Exception) -> None:
        self._tries = self._tries + 1 if version == self._failed else 1
        self._failed, self._again = version, time.monotonic() + min(LONGEST_S, self._every_s * 2 ** (self._tries - 1))
        self.failure = f"version {version or 'unknown'}: {error}"
        self._metrics.loads.labels("failed").inc()
        log.error("version %s could not be taken over, %s goes on answering: %s", version or "unknown", self.release.version, error)
