"""What a run tells MLflow, kept beside it until MLflow has all of it: `unimed sync` sends what a server that was down has missed."""

import fcntl
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unimed import outputs

FOLDER, MESSAGES, FILES = "outbox", "messages.jsonl", "files"


class Outbox:
    """The messages of one run, in order, and the files they speak of as they were then; its name is unique to the run.

    Both the run and whoever sends its messages hold it, so that `unimed sync` leaves alone what is still going on.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.count = 0

    @classmethod
    def make(cls, run: Path) -> "Outbox":
        """A fresh outbox below the folder of a run."""
        folder = run / FOLDER / uuid.uuid4().hex
        folder.mkdir(parents=True)
        (folder / MESSAGES).touch()
        return cls(folder)

    @property
    def name(self) -> str:
        """What the run in MLflow is tagged with, so that a second try goes on where the first ended."""
        return self.folder.name

    def add(self, message: dict[str, Any]) -> None:
        """Keep a message."""
        with (self.folder / MESSAGES).open("a") as file:
            file.write(json.dumps(message) + "\n")

    def hold(self, path: Path) -> str:
        """Keep a file or folder as it is now, as hard links where the disk is the same; gives its place within the outbox."""
        place = self.folder / FILES / str(self.count) / path.name
        self.count += 1
        place.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, place, copy_function=outputs.link)
        else:
            outputs.link(path, place)
        return place.relative_to(self.folder).as_posix()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What was kept; a last line that was cut off when the run was killed is left out."""
        with suppress(FileNotFoundError), (self.folder / MESSAGES).open() as file:  # sent and discarded meanwhile
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)

    @contextmanager
    def held(self, alone: bool = False) -> Iterator[bool]:
        """Hold it for the block, with others or alone; whether that was possible."""
        try:
            stream = (self.folder / MESSAGES).open()
        except FileNotFoundError:  # sent and discarded meanwhile
            yield False
            return
        with stream:
            try:
                fcntl.flock(stream, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield (self.folder / MESSAGES).exists()

    def discard(self) -> None:
        """Remove what has been sent: first the messages, without which the rest means nothing."""
        (self.folder / MESSAGES).unlink()
        shutil.rmtree(self.folder)


def waiting(runs: Path) -> list[Outbox]:
    """The outboxes with messages below the folder of all runs; what a killed `discard` left over is removed."""
    found = [Outbox(folder) for folder in sorted(runs.glob(f"*/{FOLDER}/*")) if folder.is_dir()]
    for each in found:
        if not (each.folder / MESSAGES).exists():
            shutil.rmtree(each.folder, ignore_errors=True)
    return [each for each in found if next(each.messages(), None)]
