"""Fixtures of the tests on a GPU, which are skipped without one.

TL_FLOOR_TEST_DEVICE=cpu runs the same tests on the CPU.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from tests.helpers.devices import DEVICE, is_available
from tl_distill_floor.sources.saes import load_sae
from tl_distill_floor.sources.teachers import load_teacher


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this directory, and skip them without the device."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("gpu")
            # Warnings that libraries give on some GPUs are shown; only here, they do not fail a test.
            item.add_marker(pytest.mark.filterwarnings("default"))
            if not is_available():
                item.add_marker(pytest.mark.skip(reason=f"this machine has no {DEVICE} device"))


@pytest.fixture(autouse=True)
def other_accelerate_device() -> Iterator[None]:
    """Let accelerate, which keeps its first device, start again after each test."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def device_bridge(teacher_dir: Path) -> Any:
    """Load the random teacher on the device."""
    return load_teacher(teacher_dir, device=DEVICE).model


@pytest.fixture(scope="session")
def device_sae(sae_dir: Path) -> Any:
    """Load the random SAE on the device."""
    return load_sae(sae_dir, device=DEVICE).sae
