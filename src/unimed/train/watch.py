"""Whether losses are numbers, found out without making the GPU wait."""

import math
from collections import deque

import torch
from torch import Tensor


class Watch:
    """Looks at every loss as soon as it has arrived on the CPU: at once there, at most a step later from a GPU."""

    def __init__(self) -> None:
        self.coming: deque[tuple[int, tuple[str, ...], Tensor, torch.cuda.Event | None]] = deque()

    def look(self, step: int, parts: dict[str, Tensor]) -> None:
        """Send a step's losses on their way. Raises FloatingPointError for one that has arrived and is not finite."""
        values = torch.stack([value.detach().float() for value in parts.values()])
        event = None
        if values.is_cuda:
            values = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.coming.append((step, tuple(parts), values, event))
        self.arrive(wait=False)

    def arrive(self, wait: bool = True) -> None:
        """Look at what has arrived, or, waiting, at all there is. Raises FloatingPointError with the step and its parts."""
        while self.coming and (wait or self.coming[0][3] is None or self.coming[0][3].query()):
            step, names, values, event = self.coming.popleft()
            if event is not None:
                event.synchronize()
            parts = dict(zip(names, values.tolist(), strict=True))
            if not all(map(math.isfinite, parts.values())):
                raise FloatingPointError(f"expected a finite loss at step {step}, found {parts}")
