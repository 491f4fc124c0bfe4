"""JSON lists and objects read one entry at a time, so that a file larger than memory can be; an error says line and column."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unimed.errors import InputError

MOST_CHARACTERS = 2**24
"""Characters of one entry: what is longer is no annotation and would have to be held in memory."""

_CHUNK = 2**20
_SURE = 3
"""Characters that must follow a value: `1` may be the begin of `1e-5` of which the rest is not held yet."""

_VALUE = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\n\r]*")


def load(path: Path) -> Any:
    """The value of a JSON file. Raises InputError with file, line and column when it is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: expected JSON, found an error in line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected JSON in UTF-8, found byte {error.object[error.start]:#x} at {error.start}") from error
    except RecursionError as error:
        raise InputError(f"{path}: expected JSON with few levels, found too many") from error
    except OSError as error:
        raise InputError(f"{path}: expected a JSON file, found {error.strerror}") from error


def items(path: Path) -> Iterator[Any]:
    """The values of a JSON list, in order. Raises InputError as `load` does, and for anything but a list."""
    with _Text(path) as text:
        text.open("[", "a list of records")
        for _ in text.entries("]"):
            yield text.value()


def pairs(path: Path) -> Iterator[tuple[str, Any]]:
    """The names and values of a JSON object, in order and repeated as in the file. Raises InputError as `load` does."""
    with _Text(path) as text:
        text.open("{", "an object")
        for _ in text.entries("}"):
            name = text.value()
            if not isinstance(name, str):
                raise text.error("Expecting a name in double quotes")
            text.skip(":")
            yield name, text.value()


class _Text:
    """The characters of a file from a place on, read as they are needed; `line` and `column` are those of the first one held."""

    def __init__(self, path: Path):
        self.path = path
        self.held, self.at, self.line, self.column = "", 0, 1, 1
        self.decoder, self.bytes_read, self.is_whole = codecs.getincrementaldecoder("utf-8")(), 0, False

    def __enter__(self) -> "_Text":
        try:
            self.stream = self.path.open("rb")
        except OSError as error:
            raise InputError(f"{self.path}: expected a JSON file, found {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def open(self, mark: str, expected: str) -> None:
        """Go behind the mark that the file must begin with."""
        if self.next() != mark:
            raise InputError(f"{self.path}: expected {expected}, found {type(load(self.path)).__name__}")
        self.at += 1

    def entries(self, end: str) -> Iterator[None]:
        """Stop before each entry; the commas between them, the end and what follows it are checked."""
        if self.next() != end:
            yield
            while self.next() == ",":
                self.at += 1
                yield
        self.skip(end)
        if self.next():
            raise self.error("Extra data")

    def skip(self, mark: str) -> None:
        """Go behind a mark that must come next."""
        if self.next() != mark:
            raise self.error(f"Expecting {mark!r}")
        self.at += 1

    def next(self) -> str:
        """The next character that is no white space, which stays the next; empty at the end of the file."""
        while True:
            if blank := _BLANK.match(self.held, self.at):
                self.at = blank.end()
            if self.at < len(self.held):
                return self.held[self.at]
            if not self._more(_CHUNK):
                return ""

    def value(self) -> Any:
        """The value that comes next."""
        self.next()
        while True:
            try:
                value, end = _VALUE.raw_decode(self.held, self.at)
                if len(self.held) - end >= _SURE or self.is_whole:
                    self.at = end
                    return value
                self._more(_CHUNK)
            except json.JSONDecodeError as error:
                ahead = error.pos - self.at
                if not self._more(len(self.held) - self.at):  # twice as much each time: not every chunk is worth a try
                    raise self.error(error.msg, self.at + ahead) from error
            except RecursionError as error:
                raise InputError(f"{self.path}: expected JSON with few levels, found too many") from error

    def _more(self, least: int) -> bool:
        """Hold more of the file and let go of what was read; False at its end."""
        if self.is_whole:
            return False
        if len(self.held) - self.at > MOST_CHARACTERS:
            where = self._where(self.at)
            raise InputError(f"{self.path}: expected entries of at most {MOST_CHARACTERS} characters, found a longer one in {where}")
        self.line, self.column = self._place(self.at)
        kept = [self.held[self.at :]]
        pending = len(self.decoder.getstate()[0])
        data = self.stream.read(max(_CHUNK, least))
        self.is_whole = not data
        try:
            kept.append(self.decoder.decode(data, final=self.is_whole))
        except UnicodeDecodeError as error:
            place = self.bytes_read - pending + error.start
            raise InputError(f"{self.path}: expected JSON in UTF-8, found byte {error.object[error.start]:#x} at {place}") from error
        self.bytes_read += len(data)
        self.held, self.at = "".join(kept), 0
        return not self.is_whole

    def _place(self, position: int) -> tuple[int, int]:
        """Line and column of a character that is held."""
        breaks = self.held.count("\n", 0, position)
        if not breaks:
            return self.line, self.column + position
        return self.line + breaks, position - self.held.rindex("\n", 0, position)

    def _where(self, position: int) -> str:
        line, column = self._place(position)
        return f"line {line}, column {column}"

    def error(self, message: str, position: int | None = None) -> InputError:
        """What is said about JSON that is none, at what comes next or at a place."""
        where = self._where(self.at if position is None else position)
        return InputError(f"{self.path}: expected JSON, found an error in {where}: {message}")
