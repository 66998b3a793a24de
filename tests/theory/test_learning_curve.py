"""Where a learning curve ends, on curves whose end is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_distill_floor.theory.learning_curve import fit_learning_curve

TOKENS = np.geomspace(2e4, 1e6, 24)


@given(st.floats(0.05, 2.0), st.floats(0.02, 1.0), st.floats(0.2, 2.0))
def test_a_power_law_with_an_offset_is_found_again(floor: float, amplitude: float, exponent: float) -> None:
    fit = fit_learning_curve(TOKENS, floor + amplitude * (TOKENS / TOKENS[-1]) ** -exponent)
    assert fit.floor == pytest.approx(floor, abs=0.1 * amplitude)
    assert fit.interval[0] <= fit.floor <= fit.interval[1]


@pytest.mark.parametrize("exponent", [0.0, 0.3, 0.6, 1.0])
def test_the_interval_holds_the_floor_that_noise_hides(exponent: float) -> None:
    """In 57 of 60 drawings 95 % are; at most 6 may miss, and a flat curve is no exception."""
    missed = 0
    for seed in range(60):
        noise = 1 + np.random.default_rng(seed).normal(0, 0.005, len(TOKENS))
        falling = 0.2 * (TOKENS / TOKENS[-1]) ** -exponent if exponent else 0.0
        fit = fit_learning_curve(TOKENS, (0.5 + falling) * noise)
        missed += not fit.interval[0] <= 0.5 <= fit.interval[1]
    assert missed <= 6


def test_statuses() -> None:
    flat = 0.5 + 1e-3 * (TOKENS / TOKENS[-1]) ** -1.5
    falling = 0.5 + 1.0 * (TOKENS / TOKENS[-1]) ** -0.3
    rising = np.append(flat[:-1], 0.9)
    assert [fit_learning_curve(TOKENS, curve).status for curve in (flat, falling, rising)] == [
        "saturated", "under-trained", "diverged",
    ]  # fmt: skip
    assert fit_learning_curve(TOKENS, np.append(flat[:-1], np.nan)).status == "diverged"
    assert fit_learning_curve([1, 2, 3], [3.0, 2.0, 1.0]) == fit_learning_curve([3], [1.0])
    assert fit_learning_curve([3], [1.0]).status == "under-trained"
    # Flat, but over less than a tenfold of tokens, or at too few points.
    assert fit_learning_curve(TOKENS[10:], flat[10:]).status == "under-trained"
    assert fit_learning_curve(TOKENS[::6], flat[::6]).status == "under-trained"


def test_the_warm_up_is_left_out() -> None:
    """Points before a tenth of the tokens, however wild, change nothing."""
    curve = 0.5 + 0.1 * (TOKENS / TOKENS[-1]) ** -1.0
    wild = np.where(TOKENS < 1e5, 9.0, curve)
    assert fit_learning_curve(TOKENS, wild) == fit_learning_curve(TOKENS, curve)


def test_a_curve_needs_as_many_losses_as_tokens() -> None:
    with pytest.raises(ValueError, match="a loss for every number of tokens"):
        fit_learning_curve([1, 2], [1.0])
