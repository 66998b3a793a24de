"""How the trainings use a processor: the dtype of their large products, and a thread for each model."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar, runtime_checkable

import torch

Item = TypeVar("Item")
BF16_UNITS = ("amx_bf16", "avx512_bf16")
"""Capabilities of a CPU that make matrix products in bf16 faster than in fp32, by torch's names."""


@runtime_checkable
class ForEach(Protocol):
    """A function that calls another one on each of several items."""

    def __call__(self, function: Callable[[Item], None], items: Sequence[Item]) -> None:
        """Call `function` on each of `items`."""


def product_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of large matrix products: bf16 where the processor has units for it, fp32 elsewhere.

    CPUs with AMX or AVX512-BF16 have them, and NVIDIA's GPUs from compute capability 8 (A100) on.

    Args:
        device: device of the matrices.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type != "cpu":
        return torch.float32
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if any(capabilities.get(name) for name in BF16_UNITS) else torch.float32


@contextmanager
def threads_for(n_items: int, device: torch.device) -> Iterator[ForEach]:
    """Yield a function that calls another one on each of several items, on a CPU for some of them at the same time.

    The threads of torch are divided among the calls. Threads that share one small operation wait for each other; in
    threads that work on different items they do not.

    Args:
        n_items: number of items.
        device: device of the computation; on others than a CPU, one item comes after the other.

    Example:
        >>> results = []
        >>> with threads_for(2, torch.device("cpu")) as for_each:
        ...     for_each(results.append, ["a", "b"])
        >>> sorted(results)
        ['a', 'b']
    """
    n_threads = torch.get_num_threads()
    n_workers = min(n_items, n_threads) if device.type == "cpu" else 1

    def one_by_one(function: Callable[[Item], None], items: Sequence[Item]) -> None:
        for item in items:
            function(item)

    if n_workers < 2:
        yield one_by_one
        return
    pool = ThreadPoolExecutor(n_workers, "model", torch.set_num_threads, (n_threads // n_workers,))

    def in_threads(function: Callable[[Item], None], items: Sequence[Item]) -> None:
        for _ in pool.map(function, items):  # raises what a call raised
            pass

    try:
        yield in_threads
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)  # the pool has changed it for threads that start later
