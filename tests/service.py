"""A real server for tests: a small model behind uvicorn on a free port of this machine."""

import base64
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import tiny
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from conftest import wait_until
from unimed.model.assemble import Assembled
from unimed.serving import app, command
from unimed.serving.follow import Follower, Source
from unimed.serving.limits import Limits
from unimed.serving.metrics import Metrics

LIMITS = Limits(batch=4, queue=4, timeout_s=60, max_new_tokens=6, image_bytes=2**20, pixels=10_000)


def model(turned: bool = False) -> Assembled:
    """A routed model that was only stirred; one that is turned likes least what the other likes best."""
    made = Assembled(tiny.stirred(**tiny.EXPERTS), tiny.processor())
    if turned:
        made.model.lm_head.weight.data.neg_()
    return made


@dataclass
class Brake:
    """Holds up a model before each pass until it is let go; `passes` notes how many texts each pass was about."""

    made: Assembled
    free: threading.Event = field(default_factory=threading.Event)
    held: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    one: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    passes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.made.model.register_forward_pre_hook(self._hold, with_kwargs=True)

    def _hold(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.passes.append(len(kwargs["input_ids"]))
        self.held.release()
        while not (self.free.is_set() or self.one.acquire(timeout=0.02)):
            pass

    def let_one_pass(self) -> None:
        """Let the pass that is held go, and hold the next."""
        self.one.release()

    def wait_until_held(self) -> None:
        """Return when a pass is about to begin."""
        assert self.held.acquire(timeout=60)


def script(made: Assembled, text: str) -> None:
    """Have the model write this text next and end, whatever it is asked; for one question at a time."""
    words = iter([*made.processor.tokenizer(text, add_special_tokens=False)["input_ids"], made.processor.tokenizer.eos_token_id])

    def speak(module: Any, args: Any, output: Any) -> Any:
        if (word := next(words, None)) is not None:
            output.logits[:] = -1e4
            output.logits[..., word] = 1e4
        return output

    made.model.register_forward_hook(speak)


@dataclass
class Server:
    """A server that runs."""

    url: str
    follower: Follower

    def ask(self, question: str = "Is there a nodule?", seed: int = 0, **more: Any) -> httpx.Response:
        """The response to a question about noise."""
        return self.post({"image": encoded(tiny.picture(seed)), "question": question} | more)

    def post(self, body: Any, **more: Any) -> httpx.Response:
        """The response to any JSON."""
        return httpx.post(f"{self.url}/v1/answer", json=body, timeout=90, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        """The response to a path."""
        return httpx.get(f"{self.url}{path}", timeout=30, **more)

    def number(self, name: str, **labels: str) -> float:
        """A number of its metrics; 0 where there is none yet."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        found = [one.value for family in families for one in family.samples if one.name == name and labels.items() <= one.labels.items()]
        return sum(found)


@contextmanager
def serving(source: Source | Assembled, limits: Limits = LIMITS, token: str = "") -> Iterator[Server]:
    """A server for the block; afterwards it ends as SIGTERM would have it."""
    metrics = Metrics()
    follower = Follower(source if isinstance(source, Source) else Source(lambda: "1", lambda version: source), metrics, every_s=0.1)
    server = command.server(app.make(follower, limits, metrics, token), limits.timeout_s)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive())
            yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}", follower)
        finally:
            server.should_exit = True
            thread.join()


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> str:
    """An image as a request carries it."""
    content = io.BytesIO()
    image.save(content, kind, **more)
    return base64.b64encode(content.getvalue()).decode()


def events(text: str) -> list[tuple[str, dict]]:
    """Server-sent events by name."""
    parts = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")]
    return [(part["event"], json.loads(part["data"])) for part in parts]
