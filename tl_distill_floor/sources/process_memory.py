"""Keep freed memory in the process while something is computed.

Each page of memory that the kernel maps for the first time costs a page fault. A measurement frees and allocates the
same large tensors for every batch. By default, glibc returns each of them to the kernel, which can nearly double the
time.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
KEPT_BYTES, KEPT_BYTES_AFTERWARDS = 2**30, 2**26
"""Bytes of freed memory that the process keeps during a computation, and afterwards: glibc's own default can rise to
this."""
LARGEST_KEPT_BLOCK, LARGEST_KEPT_BLOCK_OF_SHARDS = 2**25, 2**20
"""Bytes of the largest block that can be kept (the most that glibc accepts), and in a process that shards weights."""

_lock = threading.Lock()
_n_computations = 0
_largest_kept_block = LARGEST_KEPT_BLOCK


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep up to 1 GiB of freed memory in the process during the context, and return it to the system at its end.

    Contexts can be nested, and entered by several threads. Without glibc, nothing is changed.
    """
    global _n_computations
    with _lock:
        _n_computations += 1
        _set_thresholds(KEPT_BYTES)
    try:
        yield
    finally:
        with _lock:
            _n_computations -= 1
            if not _n_computations:
                _set_thresholds(KEPT_BYTES_AFTERWARDS)
                return_freed_memory()


def return_freed_memory() -> None:
    """Return all freed memory to the system, for example what loading a model took and does not need any more."""
    _call_glibc("malloc_trim", 0)


def return_large_blocks() -> None:
    """Let the process return freed blocks of 1 MiB and more to the system at once, from now on.

    With sharded weights, most of the memory of layers that were gathered and freed would otherwise stay in the process.
    """
    global _largest_kept_block
    with _lock:
        _largest_kept_block = LARGEST_KEPT_BLOCK_OF_SHARDS
        _call_glibc("mallopt", M_MMAP_THRESHOLD, _largest_kept_block)


def _set_thresholds(kept_bytes: int) -> None:
    """Set how much freed memory glibc keeps, in blocks of what size."""
    _call_glibc("mallopt", M_TRIM_THRESHOLD, kept_bytes)
    _call_glibc("mallopt", M_MMAP_THRESHOLD, _largest_kept_block)


def _call_glibc(name: str, *args: int) -> None:
    """Call a function of glibc, if the process uses it; musl has neither of the two functions."""
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*args)
