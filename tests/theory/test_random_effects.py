"""Fits over groups that differ in intercept and slope, and predictions for a group that was not seen."""

from functools import cache

import numpy as np
import pytest
from scipy.stats import t as student_t
from statsmodels.regression.mixed_linear_model import MixedLM

from tl_distill_floor.errors import InputError
from tl_distill_floor.theory.random_effects import Observations, RandomEffectsFit, fit_random_effects

N_GROUPS, N_EACH = 8, 6
WITHIN = 0.1
"""Standard deviation of the observations of a group."""
GROUPS = [f"group {i}" for i in range(N_GROUPS) for _ in range(N_EACH)]


def simulated(seed: int, between: float = 0.3, slope: float = 0.0, noise: float = 0.0) -> Observations:
    """Return observations of one more group than `GROUPS` has; the last group is to be predicted.

    Args:
        seed: seed of the random numbers.
        between: standard deviation of the groups' intercepts.
        slope: standard deviation of their slopes.
        noise: standard deviation of the measurement errors of every other observation.
    """
    generator = np.random.default_rng(seed)
    x = generator.uniform(-3, 1, (N_GROUPS + 1) * N_EACH)
    u, v = (np.repeat(generator.normal(0, scale, N_GROUPS + 1), N_EACH) for scale in (between, slope))
    y = 0.5 + 0.8 * x + u + v * (x + 1.0) + generator.normal(0, WITHIN, len(x))
    noises = np.where(np.arange(len(x)) % 2, noise, 0.0)
    return Observations(np.stack([np.ones(len(x)), x], axis=1), y + generator.normal(0, noises), noises**2)


def rows(observations: Observations, which: slice) -> Observations:
    """Return some of the observations."""
    return Observations(*(values[which] for values in observations))


@cache
def fitted(seed: int, between: float = 0.3, slope: float = 0.0, noise: float = 0.0) -> RandomEffectsFit:
    """Return the fit to all simulated groups but the last."""
    known = rows(simulated(seed, between, slope, noise), slice(-N_EACH))
    return fit_random_effects(known, GROUPS, varying=1 if slope else None)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_recovers_coefficients_and_variances(noise: float) -> None:
    fits = [fitted(seed, slope=0.2, noise=noise) for seed in range(20)]
    assert np.mean([fit.coefficients[1] for fit in fits]) == pytest.approx(0.8, abs=0.05)
    assert np.mean([fit.intercept_variance for fit in fits]) == pytest.approx(0.09, rel=0.25)
    assert np.mean([fit.slope_variance for fit in fits]) == pytest.approx(0.04, rel=0.3)
    assert np.mean([fit.residual_variance for fit in fits]) == pytest.approx(WITHIN**2, rel=0.25)


@pytest.mark.parametrize("seed", range(3))
def test_matches_statsmodels_without_measurement_errors(seed: int) -> None:
    known = rows(simulated(seed), slice(-N_EACH))
    fit, expected = fitted(seed), MixedLM(known.y, known.x, groups=GROUPS).fit(reml=True)
    np.testing.assert_allclose(fit.coefficients, expected.fe_params, rtol=1e-4)
    np.testing.assert_allclose(fit.covariance, expected.cov_params()[:2, :2], rtol=0.01, atol=1e-6)
    np.testing.assert_allclose(
        (fit.intercept_variance, fit.residual_variance), (expected.cov_re[0, 0], expected.scale), rtol=0.01
    )


def test_an_observation_with_a_large_measurement_error_counts_little() -> None:
    known = rows(simulated(0), slice(-N_EACH))
    wrong = known._replace(y=known.y + np.where(np.arange(len(known.y)) == 3, 5.0, 0.0))
    noisy = wrong._replace(noise=np.where(np.arange(len(known.y)) == 3, 1e4, 0.0))
    fit = fitted(0)
    assert fit_random_effects(noisy, GROUPS).coefficients == pytest.approx(fit.coefficients, abs=0.01)
    assert fit_random_effects(wrong, GROUPS).residual_variance > 5 * fit.residual_variance


@pytest.mark.parametrize(("level", "least", "most"), [(0.5, 0.38, 0.65), (0.95, 0.89, 0.999)])
@pytest.mark.parametrize(
    ("n_seen", "between", "slope", "noise"),
    [(0, 0.3, 0.0, 0.0), (2, 0.3, 0.0, 0.0), (0, 0.05, 0.0, 0.0), (0, 0.3, 0.2, 0.3), (2, 0.3, 0.2, 0.3)],
)
def test_intervals_cover_a_new_group(
    level: float, least: float, most: float, n_seen: int, between: float, slope: float, noise: float
) -> None:
    inside = []
    for seed in range(40):
        new = rows(simulated(seed, between, slope, noise), slice(-N_EACH, None))
        truth = rows(simulated(seed, between, slope), slice(-N_EACH, None))  # the same without measurement errors
        fit = fitted(seed, between, slope, noise)
        predicted = fit.predict(new.x[n_seen:], level, seen=rows(new, slice(n_seen)))
        inside.append((predicted.low <= truth.y[n_seen:]) & (truth.y[n_seen:] <= predicted.high))
    assert least < np.concatenate(inside).mean() < most


def test_seen_observations_condition_the_joint_normal_distribution() -> None:
    covariance = ((0.04, 0.01), (0.01, 0.02))
    fit = RandomEffectsFit(
        (0.2, 0.9),
        covariance,
        intercept_variance=0.1,
        residual_variance=0.05,
        n_groups=6,
        varying=1,
        centre=-1.0,
        slope_variance=0.03,
    )
    x, seen_y, noise = simulated(3).x[:5], simulated(3).y[:2], np.array([0.01, 0.2])
    joint = x @ np.array(fit.covariance) @ x.T + fit.intercept_variance + fit.residual_variance * np.eye(5)
    joint += fit.slope_variance * np.outer(x[:, 1] + 1.0, x[:, 1] + 1.0)
    joint[:2, :2] += np.diag(noise)
    mean = x @ np.array(fit.coefficients)
    gain = joint[2:, :2] @ np.linalg.inv(joint[:2, :2])
    expected = mean[2:] + gain @ (seen_y - mean[:2])
    margin = np.sqrt(np.diag(joint[2:, 2:] - gain @ joint[:2, 2:])) * student_t.ppf(0.9, 5)
    predicted = fit.predict(x[2:], 0.8, seen=Observations(x[:2], seen_y, noise))
    np.testing.assert_allclose(predicted.value, expected)
    np.testing.assert_allclose(predicted.high - expected, margin)
    np.testing.assert_allclose(expected - predicted.low, margin)


def test_without_terms_only_the_variances_are_fitted() -> None:
    y = np.array([0.9, 1.1, -1.1, -0.9, 1.9, 2.1])
    fit = fit_random_effects(Observations(np.empty((6, 0)), y, np.zeros(6)), ["a", "a", "b", "b", "c", "c"])
    # Means 1, -1 and 2; variance 0.02 within a group, half of it in a mean of two.
    assert (fit.coefficients, fit.n_group_terms) == ((), 0)
    assert fit.residual_variance == pytest.approx(0.02, rel=1e-3)
    assert fit.intercept_variance == pytest.approx((1 + 1 + 4) / 3 - 0.01, rel=1e-3)
    assert fit.predict(np.empty((1, 0)), 0.8).high == pytest.approx(np.sqrt(2.01) * student_t.ppf(0.9, 3), rel=1e-3)


def test_groups_without_a_difference_have_no_variance_between_them() -> None:
    assert 0 <= fitted(0, between=0.0).intercept_variance < 0.01


def test_rejects_two_groups() -> None:
    with pytest.raises(InputError, match="at least 3 groups"):
        fit_random_effects(Observations(np.ones((4, 1)), np.arange(4.0), np.zeros(4)), ["a", "a", "b", "b"])


def test_terms_of_groups_are_counted() -> None:
    """The mean intercept and a term that is the same within each group are estimated from 8 groups."""
    known = rows(simulated(1), slice(-N_EACH))
    of_group = np.repeat(np.arange(N_GROUPS, dtype=float), N_EACH)
    fit = fit_random_effects(known._replace(x=np.column_stack([known.x, of_group])), GROUPS)
    assert (fit.n_groups, fit.n_group_terms) == (8, 2)
