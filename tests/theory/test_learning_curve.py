"""Tests of the fit of learning curves, on curves with a known floor."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_distill_floor.theory.learning_curve import fit_learning_curve

N_TOKENS = np.geomspace(2e4, 1e6, 24)


@given(st.floats(0.05, 2.0), st.floats(0.02, 1.0), st.floats(0.2, 2.0))
def test_recovers_a_power_law_with_an_offset(floor: float, amplitude: float, exponent: float) -> None:
    fit = fit_learning_curve(N_TOKENS, floor + amplitude * (N_TOKENS / N_TOKENS[-1]) ** -exponent)
    assert fit.floor == pytest.approx(floor, abs=0.1 * amplitude)
    assert fit.interval[0] <= fit.floor <= fit.interval[1]


@pytest.mark.parametrize("exponent", [0.0, 0.3, 0.6, 1.0])
def test_interval_covers_the_floor_of_noisy_curves(exponent: float) -> None:
    """Of 60 intervals of 95 %, about 3 miss the floor; at most 6 may, also for a flat curve."""
    missed = 0
    for seed in range(60):
        noise = 1 + np.random.default_rng(seed).normal(0, 0.005, len(N_TOKENS))
        falling = 0.2 * (N_TOKENS / N_TOKENS[-1]) ** -exponent if exponent else 0.0
        fit = fit_learning_curve(N_TOKENS, (0.5 + falling) * noise)
        missed += not fit.interval[0] <= 0.5 <= fit.interval[1]
    assert missed <= 6


def test_status_of_each_kind_of_curve() -> None:
    flat = 0.5 + 1e-3 * (N_TOKENS / N_TOKENS[-1]) ** -1.5
    falling = 0.5 + 1.0 * (N_TOKENS / N_TOKENS[-1]) ** -0.3
    rising = np.append(flat[:-1], 0.9)
    assert [fit_learning_curve(N_TOKENS, curve).status for curve in (flat, falling, rising)] == [
        "saturated", "under-trained", "diverged",
    ]  # fmt: skip
    assert fit_learning_curve(N_TOKENS, np.append(flat[:-1], np.nan)).status == "diverged"
    assert fit_learning_curve([1, 2, 3], [3.0, 2.0, 1.0]) == fit_learning_curve([3], [1.0])
    assert fit_learning_curve([3], [1.0]).status == "under-trained"
    # Flat, but over less than a factor of ten in tokens, or with too few points.
    assert fit_learning_curve(N_TOKENS[10:], flat[10:]).status == "under-trained"
    assert fit_learning_curve(N_TOKENS[::6], flat[::6]).status == "under-trained"


def test_ignores_the_warm_up() -> None:
    """Points before a tenth of the tokens do not change the fit."""
    curve = 0.5 + 0.1 * (N_TOKENS / N_TOKENS[-1]) ** -1.0
    noisy = np.where(N_TOKENS < 1e5, 9.0, curve)
    assert fit_learning_curve(N_TOKENS, noisy) == fit_learning_curve(N_TOKENS, curve)


def test_rejects_different_numbers_of_losses_and_tokens() -> None:
    with pytest.raises(ValueError, match="one loss per number of tokens"):
        fit_learning_curve([1, 2], [1.0])
