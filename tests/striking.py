"""Signals to a training at a chosen moment of its work."""

import os
import time
from pathlib import Path


def strike(folder: Path, step: int, delay: float, number: int) -> None:
    """Send this process a signal, from within: however busy the machine is, it comes near that moment of the work."""
    while reached(folder) < step:
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(os.getpid(), number)


def reached(folder: Path) -> int:
    """The newest checkpoint's step, of whichever training of the stage; 0 before the first."""
    return max((int(place.name.removeprefix("step-")) for place in folder.glob("runs/*/checkpoints/*/step-????????")), default=0)
