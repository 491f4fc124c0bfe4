"""A child process that is fed JSON messages: slow or failing work happens there and never holds up its parent."""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any


class Sidecar:
    """`python -m MODULE` reading messages; it outlives a Ctrl-C of the parent and sees a killed parent as the end of messages."""

    def __init__(self, module: str):
        self.process = subprocess.Popen([sys.executable, "-m", module], stdin=subprocess.PIPE, text=True, start_new_session=True)
        self.is_listening = True

    def send(self, **message: Any) -> None:
        """Hand over a message; lost without an error when the child has gone."""
        if not self.is_listening or self.process.stdin is None:
            return
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.is_listening = False

    def close(self, seconds: float) -> bool:
        """End the messages and wait for the child, at most `seconds`; whether it ended well."""
        try:
            self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return self.process.wait() == 0


def messages() -> Iterator[dict[str, Any]]:
    """The parent's messages until it closes or dies. A thread takes them in, so that the parent never waits for a full pipe."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()

    def take_in() -> None:
        for line in sys.stdin:
            waiting.put(line)
        waiting.put("")

    threading.Thread(target=take_in, daemon=True).start()
    while line := waiting.get():
        yield json.loads(line)
