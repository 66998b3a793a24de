"""What the command line asks of Linux: every page of memory that it gives anew costs a fault."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's names for them; see mallopt(3)."""
KEPT = 2**30
"""Bytes of freed memory that stay with the process, for the next batch."""
FROM_THE_HEAP = 2**25
"""Bytes of the largest allocation that can be kept: the most that glibc takes."""


def keep_memory() -> None:
    """Huge pages, where torch is not imported yet, and freed memory that is kept."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_MMAP_THRESHOLD, FROM_THE_HEAP)
