"""The device that `tests/gpu` compares with the CPU, and how closely."""

import os

import numpy as np
import torch
from numpy.typing import ArrayLike

DEVICE = os.environ.get("TL_FLOOR_TEST_DEVICE", "cuda")
"""Device under test; "cpu" rehearses the tests on a machine without a GPU."""
STATISTICS, TRAINED, TRAINED_IN_BF16 = 1e-3, 0.02, 0.05
"""Relative tolerances: of statistics in fp32, and of losses after a training in fp32 and in bf16."""


def is_available() -> bool:
    """Return whether this machine has the device under test."""
    return not DEVICE.startswith("cuda") or torch.cuda.is_available()


def assert_close(actual: ArrayLike, expected: ArrayLike, tolerance: float = STATISTICS) -> None:
    """Assert that numbers of the device are those of the CPU, relative to each and to a thousandth of the largest."""
    wanted = np.asarray(expected, dtype=np.float64)
    largest = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))
    np.testing.assert_allclose(np.asarray(actual, dtype=np.float64), wanted, rtol=tolerance, atol=1e-3 * largest)
