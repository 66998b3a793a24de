"""Linear fits over several groups that differ in intercept and slope, and predictions for a group that was not seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.stats import t as student_t

from tl_distill_floor.errors import InputError
from tl_distill_floor.theory.regression import check_level

MIN_GROUPS = 3
"""Fewest groups for a fit."""
SMALLEST_VARIANCE, LARGEST_VARIANCE = 1e-8, 1e2
"""Limits of each variance, as shares of the residual variance of the fit without groups."""
ROUNDING = 1e-12
"""Least residual variance: noiseless observations would make the covariance singular."""


class PredictedValues(NamedTuple):
    """Predicted values with their prediction intervals."""

    value: Float64[np.ndarray, " new"]
    low: Float64[np.ndarray, " new"]
    high: Float64[np.ndarray, " new"]


class Observations(NamedTuple):
    """Observations with errors of measurement."""

    x: Float64[np.ndarray, "observation term"]
    """Terms of each observation; a column of ones for a mean intercept."""
    y: Float64[np.ndarray, " observation"]
    """Values."""
    noise: Float64[np.ndarray, " observation"]
    """Known variance of the measurement error of each value."""


@dataclass(frozen=True)
class RandomEffectsFit:
    """The fit y = x · coefficients + u + v · (x_k − centre) + e, plus measurement errors of known variance.

    u and v are the same for all observations of a group, e differs from observation to observation.

    Source: Laird and Ware 1982, "Random-effects models for longitudinal data", with independent u and v.

    Example:
        >>> fit = RandomEffectsFit((1.0,), ((0.0,),), intercept_variance=3.0, residual_variance=1.0, n_groups=10**6)
        >>> fit.predict(np.array([[2.0]])).value
        array([2.])
        >>> seen = Observations(np.array([[0.0]]), np.array([4.0]), np.array([0.0]))
        >>> fit.predict(np.array([[2.0]]), seen=seen).value
        array([5.])
    """

    coefficients: tuple[float, ...]
    """One for each term of x."""
    covariance: tuple[tuple[float, ...], ...]
    """Covariance of the coefficients [term, term]."""
    intercept_variance: float
    """Variance of u, from group to group."""
    residual_variance: float
    """Variance of e, from observation to observation of one group."""
    n_groups: int
    """Number of groups of the fit."""
    n_group_terms: int = 1
    """Number of terms that are the same for all observations of a group, such as a mean intercept."""
    varying: int | None = None
    """Index k of the term whose coefficient differs from group to group; None if no term has one."""
    centre: float = 0.0
    """Mean of the term k."""
    slope_variance: float = 0.0
    """Variance of v, from group to group."""

    def predict(
        self, x: Float64[np.ndarray, "new term"], level: float = 0.95, *, seen: Observations | None = None
    ) -> PredictedValues:
        """Predict new observations, without measurement errors, of one group that was not part of the fit.

        Coefficients, u and v are normal variables. Observations of the same group, if there are some, condition them,
        so that the interval narrows. Quantiles are of Student's t distribution with as many degrees of freedom as there
        are groups beyond the terms that are estimated from groups.

        Args:
            x: terms of the new observations.
            level: probability of the two-sided interval of each observation.
            seen: observations of the same group.

        Example:
            >>> fit = RandomEffectsFit((1.0,), ((0.0,),), intercept_variance=0.0, residual_variance=1.0, n_groups=10**6)
            >>> fit.predict(np.array([[0.0]]), 0.95).high.round(2)
            array([1.96])
        """
        check_level(level)
        coefficients = np.array(self.coefficients)
        mean, covariance = x @ coefficients, self._covariance(x, x)
        if seen is not None and len(seen.y):
            noise = np.diag(np.maximum(self.residual_variance + seen.noise, ROUNDING))
            gain = np.linalg.solve(self._covariance(seen.x, seen.x) + noise, self._covariance(seen.x, x)).T
            mean = mean + gain @ (seen.y - seen.x @ coefficients)
            covariance = covariance - gain @ self._covariance(seen.x, x)
        variance = np.maximum(np.diag(covariance), 0.0) + self.residual_variance
        degrees_of_freedom = max(self.n_groups - self.n_group_terms, 1)
        margin = float(student_t.ppf(0.5 + level / 2, degrees_of_freedom)) * np.sqrt(variance)
        return PredictedValues(mean, mean - margin, mean + margin)

    def _covariance(
        self, x: Float64[np.ndarray, "one term"], other: Float64[np.ndarray, "other term"]
    ) -> Float64[np.ndarray, "one other"]:
        """Return the covariance of all but e between observations of one group."""
        of_one, of_other = (_of_groups(terms, self.varying, self.centre) for terms in (x, other))
        variances = [self.intercept_variance, *([] if self.varying is None else [self.slope_variance])]
        n_terms = len(self.coefficients)
        covariance: Float64[np.ndarray, "one other"]
        covariance = x @ np.array(self.covariance).reshape(n_terms, n_terms) @ other.T
        for variance, one, another in zip(variances, of_one, of_other, strict=True):
            covariance = covariance + variance * np.outer(one, another)
        return covariance


def fit_random_effects(
    observations: Observations, groups: Sequence[str], *, varying: int | None = None
) -> RandomEffectsFit:
    """Fit coefficients, and the variances from group to group and within a group, by restricted maximum likelihood.

    Args:
        observations: the observations, with or without terms.
        groups: name of each observation's group.
        varying: index of a term whose coefficient differs from group to group; None if only the intercept does.

    Raises:
        InputError: there are fewer than three groups, or no more observations than terms or groups.

    Example:
        >>> x, noise = np.ones((6, 1)), np.zeros(6)
        >>> y = np.array([0.0, 0.1, 1.0, 1.1, 2.0, 2.1])
        >>> fit = fit_random_effects(Observations(x, y, noise), ["a", "a", "b", "b", "c", "c"])
        >>> round(fit.coefficients[0], 3), fit.intercept_variance > fit.residual_variance
        (1.05, True)
    """
    x, y, noise = observations
    n_groups, n_terms = len(set(groups)), x.shape[1]
    if n_groups < MIN_GROUPS or len(y) <= max(n_terms, n_groups):
        raise InputError(
            f"a fit over groups needs at least {MIN_GROUPS} groups and more observations than terms and groups, got"
            f" {n_groups} groups, {len(y)} observations and {n_terms} terms"
        )
    centre = 0.0 if varying is None else float(x[:, varying].mean())
    same_group = np.array(groups)[:, None] == np.array(groups)[None, :]
    effects = [same_group * np.outer(column, column) for column in _of_groups(x, varying, centre)]

    def fit_with(log_variances: Float64[np.ndarray, " variance"]) -> _Weighted:
        *of_groups, within = np.exp(log_variances)
        covariance = np.diag(within + noise) + sum(v * effect for v, effect in zip(of_groups, effects, strict=True))
        return _weighted_fit(x, y, covariance)

    residual = y - x @ np.linalg.lstsq(x, y)[0]
    scale = np.log(max(float(residual.var()), ROUNDING))
    bounds = [(scale + np.log(SMALLEST_VARIANCE), scale + np.log(LARGEST_VARIANCE))] * (len(effects) + 1)
    starts = [np.full(len(effects) + 1, scale - 1.0), np.full(len(effects) + 1, scale - 3.0)]
    results = [
        minimize(lambda v: fit_with(v).minus_log_likelihood, s, method="L-BFGS-B", bounds=bounds) for s in starts
    ]
    log_variances = min(results, key=lambda result: float(result.fun)).x
    best, variances = fit_with(log_variances), np.exp(log_variances).tolist()
    return RandomEffectsFit(
        coefficients=tuple(best.coefficients.tolist()),
        covariance=tuple(tuple(row) for row in np.linalg.inv(best.information).tolist()),
        intercept_variance=variances[0],
        residual_variance=variances[-1],
        n_groups=n_groups,
        n_group_terms=_n_group_terms(x, groups),
        varying=varying,
        centre=centre,
        slope_variance=0.0 if varying is None else variances[1],
    )


class _Weighted(NamedTuple):
    """A fit to observations whose covariance is known."""

    coefficients: Float64[np.ndarray, " term"]
    information: Float64[np.ndarray, "term term"]
    """Inverse of the covariance of the coefficients."""
    minus_log_likelihood: float
    """Restricted log-likelihood of the covariance, without a constant and with the opposite sign."""


def _weighted_fit(
    x: Float64[np.ndarray, "observation term"],
    y: Float64[np.ndarray, " observation"],
    covariance: Float64[np.ndarray, "observation observation"],
) -> _Weighted:
    """Fit the coefficients by generalized least squares."""
    root = cholesky(covariance, lower=True)
    whitened = solve_triangular(root, np.column_stack([x, y]), lower=True)
    white_x, white_y = whitened[:, :-1], whitened[:, -1]
    information = white_x.T @ white_x
    coefficients = np.linalg.solve(information, white_x.T @ white_y)
    residual = white_y - white_x @ coefficients
    log_determinants = 2.0 * float(np.log(np.diag(root)).sum()) + float(np.linalg.slogdet(information)[1])
    return _Weighted(coefficients, information, 0.5 * (float(residual @ residual) + log_determinants))


def _of_groups(
    x: Float64[np.ndarray, "observation term"], varying: int | None, centre: float
) -> list[Float64[np.ndarray, " observation"]]:
    """Return what u, and v if a term varies, are multiplied by for each observation."""
    return [np.ones(len(x)), *([] if varying is None else [x[:, varying] - centre])]


def _n_group_terms(x: Float64[np.ndarray, "observation term"], groups: Sequence[str]) -> int:
    """Return how many terms are the same for all observations of each group."""
    spread = [np.ptp(x[np.array(groups) == group], axis=0) for group in set(groups)]
    return int((np.max(spread, axis=0) == 0).sum())
