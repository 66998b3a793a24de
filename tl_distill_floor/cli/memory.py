"""Settings of the process that must be made before torch is imported: the memory allocator, and how threads wait.

Each page of memory that the kernel maps for the first time costs a page fault. A measurement frees and allocates the
same large tensors for every batch, so the process keeps what it has freed.
"""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
TRIM_THRESHOLD = 2**30
"""Bytes of freed memory that the process keeps."""
MMAP_THRESHOLD = 2**25
"""Bytes of the largest allocation that can be kept: the most that glibc accepts."""


def wait_passively() -> None:
    """Let idle threads of a matrix product sleep, where they would spin.

    Next to another job with as many threads as cores, spinning threads take the time of those that compute. Call this
    before torch is imported, since OpenMP reads the setting only then.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def tune_allocator() -> None:
    """Let torch use huge pages, and keep freed memory in the process.

    Call this before torch is imported, since torch reads the setting of huge pages only then.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
