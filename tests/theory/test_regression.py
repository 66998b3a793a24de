"""Tests of the linear fits against statsmodels' prediction intervals and against the textbook formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student_t
from statsmodels.api import OLS, add_constant

from tl_distill_floor.theory.regression import LinearFit, fit_line, leave_one_out_error

CLOSE = {"rel": 1e-9, "abs": 1e-12}


def textbook_line(x: np.ndarray, loss: np.ndarray) -> tuple[float, float]:
    """Return the slope and the baseline of the least-squares line; the slope of a constant x is 0."""
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ loss) / spread if spread > 1e-20 * float(x @ x) else 0.0
    return slope, float(loss.mean() - slope * x.mean())


def textbook_fit(x: np.ndarray, loss: np.ndarray, width: np.ndarray) -> LinearFit:
    """Compute the fit by the formulas of simple linear regression."""
    n = len(x)
    slope, baseline = textbook_line(x, loss)
    residual = loss - (slope * x + baseline)
    deviation = math.sqrt(float(residual @ residual) / (n - 2))
    spread, variance = float(((x - x.mean()) ** 2).sum()), float(((loss - loss.mean()) ** 2).sum())
    margin = float(student_t.ppf(0.975, n - 2)) * deviation
    slope_margin = margin / math.sqrt(spread) if spread > 0 else 0.0
    baseline_margin = margin * math.sqrt(1.0 / n + (x.mean() ** 2 / spread if spread > 0 else 0.0))
    errors = []
    for group in np.unique(width):
        left_out = width == group
        other_slope, other_baseline = textbook_line(x[~left_out], loss[~left_out])
        errors += np.abs(other_slope * x[left_out] + other_baseline - loss[left_out]).tolist()
    return LinearFit(
        slope=slope,
        baseline=baseline,
        slope_interval=(slope - slope_margin, slope + slope_margin),
        baseline_interval=(baseline - baseline_margin, baseline + baseline_margin),
        r2=1.0 - float(residual @ residual) / variance if variance > 0 else 1.0,
        loo_error=float(np.mean(errors)) / float(loss.mean()),
        x=tuple(x.tolist()),
        residual=deviation,
    )


def assert_equal(fit: LinearFit, expected: LinearFit) -> None:
    """Assert that two fits are equal up to rounding."""
    for name in ("slope", "baseline", "r2", "loo_error", "residual", "slope_interval", "baseline_interval", "x"):
        assert getattr(fit, name) == pytest.approx(getattr(expected, name), **CLOSE), name


@given(st.integers(0, 2**32 - 1), st.integers(3, 12), st.floats(1e-2, 1e2))
def test_matches_the_textbook_formulas(seed: int, n: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    x = scale * random.uniform(0.1, 1.0, n)
    loss = 2.0 * x / scale + random.normal(1.0, 0.1, n)
    width = np.array([2, 2, *range(3, n + 1)])
    assert_equal(fit_line(x, loss, width), textbook_fit(x, loss, width))


@pytest.mark.parametrize("x", [[0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0], [3.0, 3.0, 3.0, 7.0]])
def test_a_constant_x_has_the_slope_0(x: list[float]) -> None:
    width, loss = np.array([2, 4, 8, 16]), np.array([1.0, 0.7, 0.4, 0.2])
    assert_equal(fit_line(np.array(x), loss, width), textbook_fit(np.array(x), loss, width))


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 2.0), st.floats(0.5, 0.99))
def test_prediction_interval_matches_statsmodels(seed: int, at: float, level: float) -> None:
    random = np.random.default_rng(seed)
    x = random.uniform(0.1, 1.0, 6)
    loss = 5.0 + 2.0 * x + random.normal(0.0, 0.1, 6)
    prediction = OLS(loss, add_constant(x)).fit().get_prediction(np.array([[1.0, at]]))
    ((low, high),) = prediction.conf_int(obs=True, alpha=1.0 - level)
    predicted = fit_line(x, loss).at(at, level)
    assert predicted == pytest.approx((prediction.predicted_mean[0], max(low, 0.0), high), **CLOSE)


def test_rejects_fewer_than_3_points() -> None:
    with pytest.raises(ValueError, match="at least 3 points, got 2"):
        fit_line(np.array([1.0, 2.0]), np.array([1.0, 2.0]))


def test_leave_one_out_error_groups_by_x_without_widths() -> None:
    x, loss = np.array([3.0, 3.0, 2.0, 1.0]), np.array([9.0, 9.0, 1.5, 1.0])
    assert leave_one_out_error(x, loss) == leave_one_out_error(x, loss, [2, 2, 4, 8])
