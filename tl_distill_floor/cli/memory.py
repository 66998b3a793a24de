"""Settings of the process that must be made before torch is imported: the memory allocator, and how threads wait."""

import os
from contextlib import ExitStack

from tl_distill_floor.sources.process_memory import keep_freed_memory

_until_the_end = ExitStack()
"""Contexts that the process stays in."""


def wait_passively() -> None:
    """Let idle threads of a matrix product sleep, where they would spin.

    Next to another job with as many threads as cores, spinning threads take the time of those that compute. Call this
    before torch is imported, since OpenMP reads the setting only then.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def tune_allocator() -> None:
    """Let torch use huge pages, and keep freed memory until the end of the process.

    Call this before torch is imported, since torch reads the setting of huge pages only then.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _until_the_end.enter_context(keep_freed_memory())
