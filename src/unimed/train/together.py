"""What the processes of a run tell each other, without making any of them wait for its GPU."""

import os
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, distributed

from unimed.errors import InputError
from unimed.sections import Optimisation


class Together:
    """The processes that torchrun started, or this one alone. Each must call what the others call, in the same order.

    Numbers and bytes go from CPU to CPU, tensors from device to device.
    """

    def __init__(self) -> None:
        several = distributed.is_initialized() and distributed.get_world_size() > 1
        self.group = distributed.new_group(backend="gloo") if several else None
        self.count = distributed.get_world_size() if several else 1
        self.rank = distributed.get_rank() if several else 0
        self.first = self.rank - int(os.environ.get("LOCAL_RANK", "0")) if several else 0
        """The first of those on the same machine; torchrun numbers machine by machine."""

    @property
    def is_first(self) -> bool:
        """Whether this process does what its machine needs done once."""
        return self.rank == self.first

    def greatest(self, *numbers: int) -> list[int]:
        """Of each number the greatest that any process says."""
        said = torch.tensor(numbers)
        if self.group is not None:
            distributed.all_reduce(said, distributed.ReduceOp.MAX, self.group)
        return said.tolist()

    def gathered(self, content: bytes) -> list[bytes]:
        """What every process says, by rank."""
        if self.group is None:
            return [content]
        [longest] = self.greatest(len(content))
        own = torch.frombuffer(bytearray(len(content).to_bytes(8) + content.ljust(longest)), dtype=torch.uint8)
        found = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(found, own, self.group)
        said = [each.numpy().tobytes() for each in found]
        return [each[8 : 8 + int.from_bytes(each[:8])] for each in said]

    def all_say(self, holds: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
        """Whether it holds in every process."""
        if self.group is None:
            return holds
        lacking = holds.logical_not().float()
        distributed.all_reduce(lacking, distributed.ReduceOp.MAX)
        return lacking == 0

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Let each tensor be the sum of those of all processes; what is of one type goes in one piece."""
        for dtype in {tensor.dtype: None for tensor in tensors}:
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            sums = torch.cat([tensor.flatten() for tensor in alike])
            distributed.all_reduce(sums)
            for tensor, total in zip(alike, sums.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.group is not None:
            distributed.barrier(self.group)


def per_process(settings: Optimisation) -> int:
    """A process's part of a batch. Raises InputError when the processes that torchrun started cannot share it evenly."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if settings.batch_size % processes:
        raise InputError(f"params.yaml: batch_size must be a multiple of the {processes} processes of this run, is {settings.batch_size}")
    return settings.batch_size // processes
