"""Several processes that read one text: each works on its batches, the first adds up all of them in the text's order.

    torchrun --nproc-per-node 2 -m tl_distill_floor measure tiny-prose

What a batch gives depends on the batch alone, and sums are added in one order whatever the number of processes: the
result is the same to the last bit.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from tl_distill_floor.errors import InputError

Packed = dict[str, np.ndarray]
T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """This process among all."""

    rank: int = 0
    n: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def agreed(self, number: int) -> int:
        """The first process's number, in every process."""
        if self.n == 1:
            return number
        found = torch.tensor([number])
        with _together(0):
            dist.broadcast(found, 0)
        return int(found)

    def in_turn(
        self, tasks: Iterator[Callable[[], T]], pack: Callable[[T], Packed], unpack: Callable[[Packed], T]
    ) -> Iterator[T]:
        """What all tasks give, in their order, in the first process; the others work on theirs and yield nothing.

        Args:
            tasks: the same in every process; task i is done by process i modulo their number.
            pack, unpack: from what a task gives to named arrays, and back.

        Raises:
            InputError: another process ended.
        """
        while tasks_of_all := list(islice(tasks, self.n)):
            mine = tasks_of_all[self.rank]() if self.rank < len(tasks_of_all) else None
            if not self.is_first:
                if mine is not None:
                    _send(pack(mine))
                continue
            assert mine is not None
            yield mine
            for other in range(1, len(tasks_of_all)):
                yield unpack(_received(other))


SINGLE_PROCESS = ProcessGroup()


@cache
def current_process_group() -> ProcessGroup:
    """What the launcher says (torchrun and accelerate set RANK and WORLD_SIZE); one process without a launcher."""
    n = int(os.environ.get("WORLD_SIZE", "1"))
    if n == 1:
        return SINGLE_PROCESS
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return ProcessGroup(dist.get_rank(), n)


def _send(arrays: Packed) -> None:
    # safetensors, not pickle: nothing that a process receives can run.
    from safetensors.numpy import save

    data = torch.frombuffer(bytearray(save(arrays)), dtype=torch.uint8)
    with _together(0):
        dist.send(torch.tensor([len(data)]), 0)
        dist.send(data, 0)


def _received(rank: int) -> Packed:
    from safetensors.numpy import load

    size = torch.zeros(1, dtype=torch.int64)
    with _together(rank):
        dist.recv(size, rank)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(data, rank)
    found: dict[str, Any] = load(data.numpy().tobytes())
    return found


@contextmanager
def _together(rank: int) -> Iterator[None]:
    """One sentence where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            f"process {rank} of this run ended, so this one ends too; see what it said, and add --resume to go on from"
            " what was saved"
        ) from error
