"""Test the settings of the memory allocator and of waiting threads."""

import os
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
