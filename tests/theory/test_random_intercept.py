"""Fits with an intercept for each group, and predictions for a group that was not seen."""

from functools import cache

import numpy as np
import pytest
from scipy.stats import t as student_t

from tl_distill_floor.errors import InputError
from tl_distill_floor.theory.random_intercept import RandomInterceptFit, fit_random_intercept

N_GROUPS, N_EACH = 8, 6
GROUPS = [f"group {i}" for i in range(N_GROUPS) for _ in range(N_EACH)]


def simulated(seed: int, between: float = 0.3, within: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Return terms and values of one more group than `GROUPS` has; the last group is to be predicted."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(-3, 1, (N_GROUPS + 1) * N_EACH)
    u = np.repeat(generator.normal(0, between, N_GROUPS + 1), N_EACH)
    y = 0.5 + 0.8 * x + u + generator.normal(0, within, len(x))
    return np.stack([np.ones(len(x)), x], axis=1), y


@cache
def fitted(seed: int, between: float = 0.3) -> RandomInterceptFit:
    """Return the fit to all simulated groups but the last."""
    x, y = simulated(seed, between)
    return fit_random_intercept(x[:-N_EACH], y[:-N_EACH], GROUPS)


def test_recovers_coefficients_and_variances() -> None:
    fits = [fitted(seed) for seed in range(20)]
    assert np.mean([fit.coefficients[1] for fit in fits]) == pytest.approx(0.8, abs=0.02)
    assert np.mean([fit.between for fit in fits]) == pytest.approx(0.09, rel=0.25)
    assert np.mean([fit.within for fit in fits]) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(("level", "least", "most"), [(0.5, 0.38, 0.62), (0.95, 0.89, 0.995)])
@pytest.mark.parametrize(("n_seen", "between"), [(0, 0.3), (2, 0.3), (0, 0.05)])
def test_intervals_cover_a_new_group(level: float, least: float, most: float, n_seen: int, between: float) -> None:
    inside = []
    for seed in range(60):
        x, y = simulated(seed, between)
        fit = fitted(seed, between)
        new_x, new_y = x[-N_EACH:], y[-N_EACH:]
        predicted = fit.predict(new_x[n_seen:], level, seen_x=new_x[:n_seen], seen_y=new_y[:n_seen])
        inside.append((predicted.low <= new_y[n_seen:]) & (new_y[n_seen:] <= predicted.high))
    assert least < np.concatenate(inside).mean() < most


def test_seen_observations_condition_the_joint_normal_distribution() -> None:
    covariance = ((0.04, 0.01), (0.01, 0.02))
    fit = RandomInterceptFit((0.2, 0.9), covariance, between=0.1, within=0.05, n_groups=6, n_observations=30)
    x, y = simulated(3)
    x, seen_y = x[:5], y[:2]
    joint = x @ np.array(fit.covariance) @ x.T + fit.between + fit.within * np.eye(5)
    mean = x @ np.array(fit.coefficients)
    gain = joint[2:, :2] @ np.linalg.inv(joint[:2, :2])
    expected = mean[2:] + gain @ (seen_y - mean[:2])
    variance = np.diag(joint[2:, 2:] - gain @ joint[:2, 2:])
    # Satterthwaite 1946: 0.04 of `within` has 30 - 6 - 1 degrees of freedom, the rest 6 - 1.
    degrees = variance**2 / ((variance - 0.04) ** 2 / 5 + 0.04**2 / 23)
    margin = np.sqrt(variance) * student_t.ppf(0.9, degrees)
    predicted = fit.predict(x[2:], 0.8, seen_x=x[:2], seen_y=seen_y)
    np.testing.assert_allclose(predicted.value, expected)
    np.testing.assert_allclose(predicted.high - expected, margin)
    np.testing.assert_allclose(expected - predicted.low, margin)


def test_fixed_coefficients_leave_the_variances_to_fit() -> None:
    x, y = np.zeros((6, 1)), np.array([0.9, 1.1, -1.1, -0.9, 1.9, 2.1])
    fit = fit_random_intercept(x, y, ["a", "a", "b", "b", "c", "c"], fixed=True)
    # Means 1, -1 and 2; variance 0.02 within a group, half of it in a mean of two.
    assert fit.coefficients == (1.0,)
    assert fit.within == pytest.approx(0.02)
    assert fit.between == pytest.approx((1 + 1 + 4) / 3 - 0.01)


def test_groups_without_a_difference_have_no_variance_between_them() -> None:
    x, y = simulated(0, between=0.0, within=0.1)
    fit = fit_random_intercept(x[:-N_EACH], y[:-N_EACH], GROUPS)
    assert 0 <= fit.between < 0.01


def test_rejects_two_groups() -> None:
    with pytest.raises(InputError, match="at least 3 groups"):
        fit_random_intercept(np.ones((4, 1)), np.arange(4.0), ["a", "a", "b", "b"])


def test_terms_of_groups_are_counted() -> None:
    """The mean intercept and a term that is the same within each group are estimated from 8 groups."""
    x, y = simulated(1)
    of_group = np.repeat(np.arange(N_GROUPS, dtype=float), N_EACH)
    fit = fit_random_intercept(np.column_stack([x[:-N_EACH], of_group]), y[:-N_EACH], GROUPS)
    assert (fit.n_groups, fit.n_observations, fit.n_group_terms) == (8, 48, 2)
