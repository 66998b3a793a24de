"""Several processes that read one text; the first process sums the batches of all of them in the order of the text.

    torchrun --nproc-per-node 2 -m tl_distill_floor measure tiny-prose

The sums of a batch depend on that batch alone, and the order of summation does not depend on the number of processes.
So the result is identical for any number of processes.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from tl_distill_floor.errors import InputError

ArraysByName = dict[str, np.ndarray]
"""What processes send to each other."""
Item = TypeVar("Item")
T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that share the work, as one of them sees it."""

    rank: int = 0
    """Number of this process, counted from 0."""
    size: int = 1
    """Number of processes."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that sums, saves and prints."""
        return self.rank == 0

    def broadcast(self, number: int) -> int:
        """Return the first process's number in every process."""
        if self.size == 1:
            return number
        message = torch.tensor([number])
        with _report_lost_process(0):
            dist.broadcast(message, 0)
        return int(message)

    def run_in_order(
        self,
        items: Iterator[Item],
        run: Callable[[Iterator[Item]], Iterator[T]],
        pack: Callable[[T], ArraysByName],
        unpack: Callable[[ArraysByName], T],
    ) -> Iterator[T]:
        """Work on items in all processes and yield the results in order in the first; the others yield nothing.

        Args:
            items: the same items in every process. Process i modulo the number of processes works on item i.
            run: yields the result of each item of one process. It may read items before it yields earlier results.
            pack: turns a result into named arrays.
            unpack: turns named arrays into a result.

        Raises:
            InputError: another process ended.
        """
        sizes: deque[int] = deque()

        def own_items() -> Iterator[Item]:
            while round_of_items := list(islice(items, self.size)):
                sizes.append(len(round_of_items))
                yield from round_of_items[self.rank : self.rank + 1]

        for result in run(own_items()):
            if not self.is_first:
                _send(pack(result))
                continue
            yield result
            for other in range(1, sizes.popleft()):
                yield unpack(_receive(other))


SINGLE_PROCESS = ProcessGroup()


@cache
def current_process_group() -> ProcessGroup:
    """Return the process group that the launcher set up; a single process without a launcher.

    torchrun and accelerate set the environment variables RANK and WORLD_SIZE; a cluster may set the second one alone.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1:
        return SINGLE_PROCESS
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return ProcessGroup(dist.get_rank(), size)


def _send(arrays: ArraysByName) -> None:
    """Send arrays to the first process."""
    # safetensors instead of pickle: a received message cannot run code.
    from safetensors.numpy import save

    data = torch.frombuffer(bytearray(save(arrays)), dtype=torch.uint8)
    with _report_lost_process(0):
        dist.send(torch.tensor([len(data)]), 0)
        dist.send(data, 0)


def _receive(rank: int) -> ArraysByName:
    """Receive the arrays that another process sends."""
    from safetensors.numpy import load

    size = torch.zeros(1, dtype=torch.int64)
    with _report_lost_process(rank):
        dist.recv(size, rank)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(data, rank)
    arrays: ArraysByName = load(data.numpy().tobytes())
    return arrays


@contextmanager
def _report_lost_process(rank: int) -> Iterator[None]:
    """Raise an InputError if the process with that rank has ended."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            f"process {rank} of this run ended, so this one ends too; see what it said, and add --resume to go on from"
            " what was saved"
        ) from error
