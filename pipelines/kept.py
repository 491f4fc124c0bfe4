"""The checkpoints of a stage in the store, so that a pod that takes the place of one that is gone goes on from them."""

import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unimed import hashes, job, outputs
from unimed.errors import InputError
from unimed.store import Store

EVERY_SECONDS = 5.0
"""Between two looks at whether there is a new one. They come every ten minutes, and when the stage is told to stop."""

NAME = re.compile(r"[0-9]+(-[0-9]+)?/step-[0-9]{8}/[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Of a file: the training of the stage, the step, and its name in the checkpoint."""

log = logging.getLogger("pod")


class Kept:
    """What the store holds of a stage's checkpoints under its recipe key: of each training the newest `count`.

    A checkpoint is for as many processes as wrote it: `share` is their number ("8"), or of several machines "2x8-0" for the first of two
    with eight each. `folder` is where the stage has them, and looks for them. A stage can do without, so what cannot be fetched or kept is
    a warning.
    """

    def __init__(self, store: Store, stage: str, key: str, share: str, folder: Path, count: int = 1):
        self.objects, self.name, self.folder, self.count = store.objects, f"checkpoints/{stage}-{key}-{share}", folder, count
        self.held: dict[str, str] = {}
        """Of each file that the store lists the md5."""
        self.sent: set[str] = set()
        """Files that may be there beside those."""
        self.tried: set[Path] = set()
        """The newest checkpoints when it last looked."""

    def fetch(self) -> None:
        """Lay them where the stage looks for them, each whole or not at all."""
        try:
            self.held = self._listing()
        except InputError as error:
            log.warning("checkpoint left out: %s", error)
        for step in sorted({name.rpartition("/")[0] for name in self.held}):
            try:
                self._fetch(step)
                log.info("an earlier pod left the checkpoint %s", self.objects.url(f"{self.name}/{step}"))
            except (InputError, OSError) as error:
                log.warning("checkpoint left out: %s", error)
                outputs.remove(self.folder / step)
        self.tried = self._newest()

    def _fetch(self, step: str) -> None:
        (self.folder / step).mkdir(parents=True)
        for name, md5 in self.held.items():
            if name.startswith(f"{step}/"):
                self.objects.fetch(f"{self.name}/{name}", self.folder / name, md5, _unseen)

    @contextmanager
    def following(self) -> Iterator[None]:
        """While the block runs, and once more when it ends, whatever is new is put into the store."""
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(EVERY_SECONDS):
                self.keep()

        # A daemon: a signal between here and the block must not leave it running, and the pod with it.
        thread = threading.Thread(target=follow, name="checkpoints", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.keep()

    def keep(self) -> None:
        """Put what is new into the store, and let go of what it takes the place of. Each is tried once."""
        try:
            newest = self._newest()
            if newest <= self.tried:
                return
            self.tried = newest
            entries = [(step.relative_to(self.folder), entry) for step in newest for entry in hashes.listing(step)]
            files = {f"{step}/{entry['relpath']}": entry["md5"] for step, entry in entries}
            for name, md5 in files.items():
                if self.held.get(name) != md5:
                    self.sent.add(name)
                    self.objects.send(f"{self.name}/{name}", self.folder / name, md5, _unseen)
            self._list(files)
        except (InputError, OSError) as error:
            if self.folder.exists():  # else the stage has ended well meanwhile
                log.warning("checkpoint not kept: %s", error)

    def drop(self) -> None:
        """Let go of all of them, also of those that another machine has kept: the stage has ended well."""
        try:
            self.held |= self._listing()
            if self.held or self.sent:
                self._list({})
        except InputError as error:
            log.warning("checkpoints stay in the store: %s", error)

    def tidy(self) -> None:
        """Let go of what came through of one that was not kept."""
        try:
            for name in sorted(self.sent - self.held.keys()):
                self.objects.delete(f"{self.name}/{name}")
                self.sent.remove(name)
        except InputError as error:
            log.warning("an old checkpoint stays in the store for now: %s", error)

    def _newest(self) -> set[Path]:
        """The newest checkpoints of each training."""
        return {step for training in self.folder.glob("*") for step in job.complete_checkpoints(training)[-self.count :]}

    def _listing(self) -> dict[str, str]:
        """What the store says that it holds. Raises InputError for anything but names and hashes."""
        text = self.objects.read(f"{self.name}.json")
        where = self.objects.url(f"{self.name}.json")
        try:
            found = json.loads(text or b"{}")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InputError(f"{where}: expected a listing of checkpoints in JSON, found something else; delete it")
        if wrong := [name for name, md5 in found.items() if not (NAME.fullmatch(name) and re.fullmatch("[0-9a-f]{32}", str(md5)))]:
            raise InputError(f"{where}: expected files of checkpoints with their md5, found {wrong[0]!r}; delete it")
        return found

    def _list(self, files: dict[str, str]) -> None:
        """Say what the store holds from now on; what it no longer does is deleted after that."""
        listing = f"{self.name}.json"
        if files:
            self.objects.write(listing, json.dumps(files, sort_keys=True).encode())
        else:
            self.objects.delete(listing)
        self.sent, self.held = (self.sent | self.held.keys()) - files.keys(), files
        self.tidy()


def _unseen(count: int) -> None:
    """No bar for bytes that go beside the stage's own work."""
