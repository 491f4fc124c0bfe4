"""The border of a component: flags become paths, params.yaml becomes sections, outputs appear complete or not at all.

A component calls `step.main(run)`; the signature of `run` is all it declares.
"""

import argparse
import inspect
import logging
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

from unimed import environment, job, outputs, params, tracking
from unimed.errors import BAD_INPUT, InputError
from unimed.settings import Tracking

Input = Annotated[Path, "input"]
"""A file or folder that the component reads."""

Output = Annotated[Path, "output"]
"""A file or folder that the component writes; it is handed a temporary path that is renamed when `run` has returned."""

Run = Callable[..., None]

log = logging.getLogger("step")


def paths(run: Run) -> dict[str, Any]:
    """The ports of a component: each path argument with `Input` or `Output`."""
    return {name: hint for name, hint in _arguments(run).items() if hint in (Input, Output)}


def words(run: Run) -> list[str]:
    """The plain words that a component takes from its command: its `str` arguments."""
    return [name for name, hint in _arguments(run).items() if hint is str]


def sections(run: Run) -> dict[str, Any]:
    """The keys of params.yaml that a component takes, each with its type: all arguments that are neither ports nor words."""
    return {name: hint for name, hint in _arguments(run).items() if hint not in (Input, Output, str)}


def _arguments(run: Run) -> dict[str, Any]:
    hints = get_type_hints(run, include_extras=True)
    return {name: hints[name] for name in inspect.signature(run).parameters}


def main(run: Run, registers: str | None = None) -> None:
    """Run a component from the command line; `registers` names the model whose new version its one output is.

    Exits with code 78 and one sentence when the input is at fault; any other exception is a defect and passes through.
    """
    environment.settle()
    environment.start_logging()
    signal.signal(signal.SIGTERM, stop)
    with job.noting_end():
        try:
            _run(run, registers, sys.argv[1:])
        except InputError as error:
            log.error("%s", error)
            sys.exit(BAD_INPUT)


def stop(number: int, frame: object) -> NoReturn:
    """End on a signal as on Ctrl-C: clean-up runs, tracking learns of it."""
    sys.exit(128 + number)


def _run(run: Run, registers: str | None, arguments: list[str]) -> None:
    ports = paths(run)
    flags = vars(_parser(run).parse_args(arguments))
    text = flags.pop("params")
    everything = params.load(Path("params.yaml").read_text() if text is None else text)
    values = {name: params.parse(name, kind, everything) for name, kind in sections(run).items()}
    settings = params.parse("tracking", Tracking, {"tracking": {}} | everything)
    reads = [name for name, port in ports.items() if port == Input]
    _check_present({name: flags[name] for name in reads})
    words_of = {name: str(value) for name, value in flags.items()}
    task = job.find(Path(sys.argv[0]).stem, words_of, reads, {name: everything[name] for name in values}, everything)
    _seed(params.parse("seed", int, {"seed": 0} | everything))
    targets = {name: flags[name] for name, port in ports.items() if port == Output}
    with job.run(task), tracking.follow(task, settings):
        try:
            with outputs.complete(targets) as partial:
                run(**{**flags, **partial}, **values)
        finally:
            if outputs.is_leader():  # who may be moving them while another process looks
                tracking.keep_reports(outputs.written(targets))
        if registers:
            tracking.register(registers, next(iter(targets.values())))


def _parser(run: Run) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=inspect.getdoc(inspect.getmodule(run)), allow_abbrev=False)
    for name in paths(run):
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True)
    for name in words(run):
        parser.add_argument(f"--{name.replace('_', '-')}", required=True)
    parser.add_argument("--params", help="parameters as a text of YAML; the file ./params.yaml when left out")
    return parser


def _check_present(inputs: dict[str, Path]) -> None:
    for name, path in inputs.items():
        if not path.exists():
            raise InputError(f"--{name.replace('_', '-')} {path}: expected a file or folder, found nothing")


def _seed(seed: int) -> None:
    """Seed the global generators of the libraries that the component has imported; none is imported for it."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
