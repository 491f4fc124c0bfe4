"""Whether losses and gradients are numbers, found out without making the GPU wait."""

import math
from collections import deque

import torch
from torch import Tensor

Found = list[tuple[int, dict[str, float]]]
"""Steps with their numbers, of which at least one is not finite."""


class Watch:
    """Looks at every step's numbers as soon as they have arrived on the CPU: at once there, at most a step later from a GPU."""

    def __init__(self) -> None:
        self.coming: deque[tuple[int, tuple[str, ...], Tensor, torch.cuda.Event | None]] = deque()

    def look(self, step: int, parts: dict[str, Tensor]) -> Found:
        """Send a step's numbers on their way; gives what has arrived and is not finite."""
        values = torch.stack([value.detach().float() for value in parts.values()])
        event = None
        if values.is_cuda:
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.coming.append((step, tuple(parts), values, event))
        return self.arrive(wait=False)

    def arrive(self, wait: bool = True) -> Found:
        """What is not finite of all that has arrived, or, waiting, of all there is."""
        found: Found = []
        while self.coming and (wait or self.coming[0][3] is None or self.coming[0][3].query()):
            step, names, values, event = self.coming.popleft()
            if event is not None:
                event.synchronize()
            parts = dict(zip(names, values.tolist(), strict=True))
            if not all(map(math.isfinite, parts.values())):
                found.append((step, parts))
        return found
