"""What batching is worth: a served model against the same model called in a loop, its latency under load, and three times too much.

Run it alone on a machine: `python benchmarks/serving.py`. It takes about a minute after the model is there.
"""

import asyncio
import base64
import io
import json
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from unimed import answering, environment, params, predict
from unimed.config import MoeRouter, Vlm
from unimed.errors import InputError
from unimed.model import adapters, artifacts, assemble, weights
from unimed.origins import StandIn
from unimed.train import rehearsal

HOST, CLIENTS, SEED = "127.0.0.1", 32, 0
QUESTIONS = (
    "Is there a nodule?",
    "Please segment the liver in this image.",
    "Describe this image briefly.",
    "Which structure lies in <region>?",
)


def bodies(count: int = 16) -> list[dict]:
    """Questions about noise, one in four with a region."""
    draw = np.random.default_rng(SEED)
    made = []
    for number in range(count):
        content = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (128, 128), dtype=np.uint8)).save(content, "PNG")
        question = QUESTIONS[number % len(QUESTIONS)]
        regions = ["box:20,30,40,50"] if "<region>" in question else []
        made.append({"image": base64.b64encode(content.getvalue()).decode(), "question": question, "regions": regions})
    return made


def untrained(root: Path) -> Path:
    """Folders as the stages leave them, of a model of the shape in params.yaml that nobody has trained; gives the router's."""
    numbers = params.load(Path("params.yaml").read_text())
    made = rehearsal.build(params.parse("vlm", Vlm, numbers), params.parse("foundation", StandIn, numbers), SEED)
    parents = {"foundation": root / "foundation"}
    assemble.write_foundation(parents["foundation"], made)
    weights.write(root / "aligned", weights.named(made.model, assemble.ALIGNED), parents)
    parents["aligned"] = root / "aligned"
    folders = {name: root / f"{name}_expert" for name in assemble.EXPERTS}
    for name, tensors in (("vqa", {}), ("grounding", weights.named(made.model, assemble.GROUNDING))):
        language = assemble.aligned(parents["foundation"], parents["aligned"]).model.model.language_model
        adapters.add(language, name, 16, 2.0, assemble.EXPERT_TARGETS)
        adapters.write(folders[name], adapters.taken(language, name))
        weights.write(folders[name], tensors, parents) if tensors else artifacts.seal(folders[name], parents)
    router = params.parse("moe_router", MoeRouter, numbers)
    routed = assemble.routed(parents["foundation"], parents["aligned"], folders, router).model
    routers = [name for name, _ in routed.named_modules() if name.endswith(".router")]
    weights.write(root / "router", weights.named(routed, routers), parents | folders, moe_router=router.model_dump(mode="json"))
    return root / "router"


def looped(model: Path, asked: list[dict], words: int, seconds: float) -> float:
    """Answers a second of one call after the other."""
    made = predict.load(model)

    def call(body: dict) -> None:
        image = answering.picture(base64.b64decode(body["image"]), "image")
        regions = tuple(answering.region(text, image) for text in body["regions"])
        answering.answer(made, [answering.Question(image, body["question"], regions)], words)

    for body in asked[:4]:
        call(body)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        call(asked[count % len(asked)])
        count += 1
    return count / (time.monotonic() - began)


@contextmanager
def served(model: Path, words: int) -> Iterator[int]:
    """The port of a real server for the block."""
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    line = [sys.executable, "-c", "from unimed.cli import main; main()", "serve", "--model", str(model), "--port", str(port)]
    with subprocess.Popen([*line, "--max-new-tokens", str(words)], stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                with suppress(OSError):
                    socket.create_connection((HOST, port), 1).close()
                    break
                time.sleep(0.2)
            else:
                raise InputError(f"{model}: expected `unimed serve` to start with it, found exit code {process.returncode}; try it by hand")
            yield port
        finally:
            process.terminate()


@dataclass
class Load:
    """Clients of a server, their connections kept; statuses and seconds of what they asked."""

    port: int
    requests: list[bytes]
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    async def ask(self, number: int, since: float) -> None:
        """One request; its time counts from when it was due, whatever kept it from being sent."""
        try:
            reader, writer = self._kept() or await asyncio.open_connection(HOST, self.port)
            writer.write(self.requests[number % len(self.requests)])
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            await reader.readexactly(int(fields["content-length"]))
        except (OSError, asyncio.IncompleteReadError) as error:
            self.statuses[type(error).__name__] += 1
            return
        status = head.split(" ")[1]
        self.statuses[status] += 1
        if status == "200":
            self.seconds.append(time.monotonic() - since)
        if fields.get("connection") == "close":
            writer.close()
        else:
            self.idle.append((reader, writer))

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection that the server has not closed meanwhile, as it does to those that nothing was asked on for some seconds."""
        while self.idle:
            reader, writer = self.idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def closed(self, seconds: float) -> float:
        """Answers a second when each client asks again as soon as it is answered."""
        began = time.monotonic()

        async def client(first: int) -> None:
            number = first
            while time.monotonic() - began < seconds:
                await self.ask(number, time.monotonic())
                number += CLIENTS

        await asyncio.gather(*map(client, range(CLIENTS)))
        return self.statuses["200"] / (time.monotonic() - began)

    async def open(self, rate: float, seconds: float) -> None:
        """Requests that arrive at a rate, at random times, whether or not others are answered."""
        draw, began, due, tasks = random.Random(SEED), time.monotonic(), 0.0, []
        while (due := due + draw.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            tasks.append(asyncio.create_task(self.ask(len(tasks), began + due)))
        await asyncio.gather(*tasks)

    def at(self, share: float) -> float:
        """Milliseconds that this share of the answers took at most."""
        return 1000 * float(np.quantile(self.seconds, share)) if self.seconds else float("nan")


def under(port: int, asked: list[dict], work: Callable[[Load], Awaitable[float | None]]) -> tuple[Load, float]:
    """A load of its own connections, and what the work with it gives."""
    encoded = [json.dumps(body).encode() for body in asked]
    head = f"POST /v1/answer HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: "
    load = Load(port, [f"{head}{len(body)}\r\n\r\n".encode() + body for body in encoded])

    async def run() -> float:
        found = await work(load)
        for _, writer in load.idle:
            writer.close()
        return found or 0.0

    return load, asyncio.run(run())


def machine() -> str:
    """What this was measured on."""
    found = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(": ", 1)[1] for line in found.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main(
    model: Annotated[Path | None, typer.Option(help="A model folder; one of the rehearsal's shape is made when left out.")] = None,
    words: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 24,
    seconds: Annotated[float, typer.Option(min=1, help="Of each of the four measurements.")] = 15,
) -> None:
    """Print throughput, latency and overload of a served model beside the bounds that they are held to."""
    environment.settle()
    asked = bodies()
    with tempfile.TemporaryDirectory() as folder:
        place = model or untrained(Path(folder))
        alone = looped(place, asked, words, seconds)
        with served(place, words) as port:
            under(port, asked, lambda load: load.closed(3))
            _, most = under(port, asked, lambda load: load.closed(seconds))
            steady, _ = under(port, asked, lambda load: load.open(0.8 * most, seconds))
            flooded, _ = under(port, asked, lambda load: load.open(3 * most, seconds))
    half, rare = steady.at(0.5), steady.at(0.99)
    others = set(flooded.statuses) - {"200", "429"}
    rows = [
        (f"{most:.1f} answers/s served, {alone:.1f} in a loop", f"{most / alone:.2f} times", "at least 2", most >= 2 * alone),
        (f"p50 {half:.0f} ms, p99 {rare:.0f} ms at 80 % of that", f"{rare / half:.2f} times", "below 2", rare < 2 * half),
        (f"{dict(steady.statuses)} at 80 %", f"{set(steady.statuses)}", "200 alone", set(steady.statuses) == {"200"}),
        (f"{dict(flooded.statuses)} at 300 %", f"{others or 'none'}", "none but 429", not others),
    ]
    typer.echo(f"{machine()}; {CLIENTS} clients, {words} tokens, {seconds:g} s each\n\n| measured | | bound | |\n| --- | --- | --- | --- |")
    for measured, found, bound, holds in rows:
        typer.echo(f"| {measured} | {found} | {bound} | {'met' if holds else 'MISSED'} |")
    raise typer.Exit(0 if all(row[-1] for row in rows) else 1)


if __name__ == "__main__":
    typer.run(main)
