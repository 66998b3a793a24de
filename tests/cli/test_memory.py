"""Freed memory stays with the process that the command line runs in."""

import subprocess
import sys
from pathlib import Path

import pytest

FAULTS_OF_THE_SECOND = """
import resource, sys
import numpy as np
if "kept" in sys.argv:
    from tl_distill_floor.cli.memory import keep_memory
    keep_memory()
np.ones(3 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(3 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_the_second(*how: str) -> int:
    """Page faults of 24 MiB that are written after as many were freed."""
    out = subprocess.run(
        [sys.executable, "-c", FAULTS_OF_THE_SECOND, *how], capture_output=True, text=True, check=True,
        env={"NUMPY_MADVISE_HUGEPAGE": "0"},
    )  # fmt: skip
    return int(out.stdout)


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="pages are huge: few faults")
def test_freed_memory_costs_no_faults_again() -> None:
    assert faults_of_the_second() > 1000
    assert faults_of_the_second("kept") < 100
