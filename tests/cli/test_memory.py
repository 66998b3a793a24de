"""Test the settings of the memory allocator and of waiting threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, sys
from contextlib import nullcontext
import numpy as np
from tl_distill_floor.cli.memory import tune_allocator
from tl_distill_floor.sources.process_memory import keep_freed_memory, return_large_blocks
def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(3 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
if "command line" in sys.argv:
    tune_allocator()
if "sharded" in sys.argv:
    return_large_blocks()
library = "library" in sys.argv
with keep_freed_memory() if library else nullcontext(), keep_freed_memory() if library else nullcontext():
    page_faults()
    print(page_faults())
print(page_faults())
"""


def page_faults(*args: str) -> list[int]:
    """Return the page faults of writing 24 MiB after as much memory was freed: in the context, and after it."""
    out = subprocess.run(
        [sys.executable, "-c", CODE, *args], capture_output=True, text=True, check=True,
        env={"NUMPY_MADVISE_HUGEPAGE": "0"},
    )  # fmt: skip
    return [int(line) for line in out.stdout.split()]


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
@pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="huge pages cause few faults")
def test_freed_memory_is_reused_without_page_faults() -> None:
    assert page_faults()[0] > 1000
    assert max(page_faults("command line")) < 100


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
@pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="huge pages cause few faults")
def test_memory_goes_back_to_the_system_after_a_computation() -> None:
    during, afterwards = page_faults("library")
    assert during < 100
    assert afterwards > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
@pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="huge pages cause few faults")
def test_memory_of_gathered_weights_goes_back_at_once_also_during_a_computation() -> None:
    assert min(page_faults("library", "sharded")) > 1000
    assert min(page_faults("command line", "sharded")) > 1000


@pytest.mark.parametrize(("given", "kept"), [(None, "passive"), ("active", "active")])
def test_idle_threads_sleep_unless_the_user_says_otherwise(given: str | None, kept: str) -> None:
    code = (
        "import os, sys\n"
        "from tl_distill_floor.cli.app import main\n"
        "assert 'torch' not in sys.modules\n"
        "sys.argv = ['tl-floor', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(os.environ['OMP_WAIT_POLICY'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.split()[-1] == kept
