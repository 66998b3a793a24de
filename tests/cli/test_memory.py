"""Test the settings of the memory allocator."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, sys
import numpy as np
if "tuned" in sys.argv:
    from tl_distill_floor.cli.memory import tune_allocator
    tune_allocator()
np.ones(3 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(3 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*args: str) -> int:
    """Return the page faults of writing 24 MiB, after the same amount of memory was freed."""
    out = subprocess.run(
        [sys.executable, "-c", CODE, *args], capture_output=True, text=True, check=True,
        env={"NUMPY_MADVISE_HUGEPAGE": "0"},
    )  # fmt: skip
    return int(out.stdout)


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
@pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="huge pages cause few faults")
def test_freed_memory_is_reused_without_page_faults() -> None:
    assert page_faults() > 1000
    assert page_faults("tuned") < 100
