"""Linear fits over several groups, each with an intercept of its own, and predictions for a group that was not seen."""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.stats import t as student_t

from tl_distill_floor.errors import InputError

MIN_GROUPS = 3
"""Fewest groups for a fit."""
SMALLEST_WITHIN = 1e-12
"""Least variance of one observation: noiseless observations would make the covariance singular."""


class PredictedValues(NamedTuple):
    """Predicted values with their prediction intervals."""

    value: Float64[np.ndarray, " new"]
    low: Float64[np.ndarray, " new"]
    high: Float64[np.ndarray, " new"]


@dataclass(frozen=True)
class RandomInterceptFit:
    """The fit y = x · coefficients + u + e, where u is the same for all observations of a group.

    Source: Laird and Ware 1982, "Random-effects models for longitudinal data", with a random intercept only.

    Example:
        >>> sizes = {"n_groups": 10**6, "n_observations": 10**7}
        >>> fit = RandomInterceptFit((1.0,), ((0.0,),), between=3.0, within=1.0, **sizes)
        >>> fit.predict(np.array([[2.0]])).value
        array([2.])
        >>> fit.predict(np.array([[2.0]]), seen_x=np.array([[0.0]]), seen_y=np.array([4.0])).value
        array([5.])
    """

    coefficients: tuple[float, ...]
    """One for each term of x."""
    covariance: tuple[tuple[float, ...], ...]
    """Covariance of the coefficients [term, term]."""
    between: float
    """Variance of u, from group to group."""
    within: float
    """Variance of e, from observation to observation of one group."""
    n_groups: int
    """Number of groups of the fit."""
    n_observations: int
    """Number of observations of all groups."""
    n_group_terms: int = 1
    """Terms that are the same for all observations of a group, such as a mean intercept."""

    def predict(
        self,
        x: Float64[np.ndarray, "new term"],
        level: float = 0.95,
        *,
        seen_x: Float64[np.ndarray, "seen term"] | None = None,
        seen_y: Float64[np.ndarray, " seen"] | None = None,
    ) -> PredictedValues:
        """Predict new observations of one group that was not part of the fit.

        The coefficients and the intercept are normal variables. Observations of the same group, if there are some,
        condition them, so that the interval narrows. Quantiles are of Student's t distribution with Satterthwaite's
        degrees of freedom (1946, "An approximate distribution of estimates of variance components"): few if most of the
        variance is from group to group, as there are few groups.

        Args:
            x: terms of the new observations.
            level: probability of the two-sided interval of each observation.
            seen_x: terms of observations of the same group.
            seen_y: their values.

        Example:
            >>> fit = RandomInterceptFit((1.0,), ((0.0,),), 0.0, 1.0, n_groups=10**6, n_observations=10**7)
            >>> fit.predict(np.array([[0.0]]), 0.95).high.round(2)
            array([1.96])
        """
        coefficients = np.array(self.coefficients)
        mean, covariance = x @ coefficients, self._covariance(x, x)
        if seen_x is not None and seen_y is not None and len(seen_y):
            seen_noise = max(self.within, SMALLEST_WITHIN) * np.eye(len(seen_y))
            gain = np.linalg.solve(self._covariance(seen_x, seen_x) + seen_noise, self._covariance(seen_x, x)).T
            mean = mean + gain @ (seen_y - seen_x @ coefficients)
            covariance = covariance - gain @ self._covariance(seen_x, x)
        variance = np.maximum(np.diag(covariance), 0.0) + self.within
        margin = student_t.ppf(0.5 + level / 2, self._degrees_of_freedom(variance)) * np.sqrt(variance)
        return PredictedValues(mean, mean - margin, mean + margin)

    def _degrees_of_freedom(self, variance: Float64[np.ndarray, " new"]) -> Float64[np.ndarray, " new"]:
        """Return the degrees of freedom of the variances of predictions.

        The variance of the groups' means, `between` + `within` / (observations of a group), and `within` are estimated
        independently. What a prediction's variance holds beyond the part of the latter is counted to the former.
        """
        per_group = self.n_observations / self.n_groups
        of_groups = max(self.n_groups - self.n_group_terms, 1)
        of_observations = max(self.n_observations - self.n_groups - len(self.coefficients) + self.n_group_terms, 1)
        from_within = np.minimum(self.within * (1.0 - 1.0 / per_group), variance)
        from_groups = variance - from_within
        uncertainty = from_groups**2 / of_groups + from_within**2 / of_observations
        degrees: np.ndarray = np.divide(variance**2, uncertainty, out=np.ones_like(variance), where=uncertainty > 0)
        return degrees

    def _covariance(
        self, x: Float64[np.ndarray, "one term"], other: Float64[np.ndarray, "other term"]
    ) -> Float64[np.ndarray, "one other"]:
        """Return the covariance of x · coefficients + u between observations of one group."""
        covariance: Float64[np.ndarray, "one other"] = x @ np.array(self.covariance) @ other.T + self.between
        return covariance


def fit_random_intercept(
    x: Float64[np.ndarray, "observation term"],
    y: Float64[np.ndarray, " observation"],
    groups: list[str],
    *,
    fixed: bool = False,
) -> RandomInterceptFit:
    """Fit coefficients, and the variances from group to group and within a group, by restricted maximum likelihood.

    Args:
        x: terms of each observation; include a column of ones for a mean intercept.
        y: values.
        groups: name of each observation's group.
        fixed: take all coefficients to be 1 and fit the variances only.

    Raises:
        InputError: there are fewer than three groups, or no more observations than terms.

    Example:
        >>> x = np.ones((6, 1))
        >>> y = np.array([0.0, 0.1, 1.0, 1.1, 2.0, 2.1])
        >>> fit = fit_random_intercept(x, y, ["a", "a", "b", "b", "c", "c"])
        >>> round(fit.coefficients[0], 3), fit.between > fit.within
        (1.05, True)
    """
    n_groups, n_terms = len(set(groups)), x.shape[1]
    if n_groups < MIN_GROUPS or len(y) <= max(n_terms, n_groups):
        raise InputError(
            f"a fit over groups needs at least {MIN_GROUPS} groups and more observations than terms and groups, got"
            f" {n_groups} groups, {len(y)} observations and {n_terms} terms"
        )
    if fixed:
        between, within = _variances(y - x.sum(1), groups)
        none = ((0.0,) * n_terms,) * n_terms
        return RandomInterceptFit((1.0,) * n_terms, none, between, within, n_groups, len(y), n_group_terms=0)
    from statsmodels.regression.mixed_linear_model import MixedLM

    with warnings.catch_warnings():
        # It warns if the variance from group to group is 0, which is an answer.
        warnings.simplefilter("ignore")
        result = MixedLM(y, x, groups=groups).fit(reml=True)
    return RandomInterceptFit(
        coefficients=tuple(float(value) for value in result.fe_params),
        covariance=tuple(tuple(float(value) for value in row) for row in result.cov_params()[:n_terms, :n_terms]),
        between=max(float(result.cov_re[0, 0]), 0.0),
        within=float(result.scale),
        n_groups=n_groups,
        n_observations=len(y),
        n_group_terms=_n_group_terms(x, groups),
    )


def _n_group_terms(x: Float64[np.ndarray, "observation term"], groups: list[str]) -> int:
    """Return how many terms are the same for all observations of each group."""
    spread = [np.ptp(x[np.array(groups) == group], axis=0) for group in set(groups)]
    return int((np.max(spread, axis=0) == 0).sum())


def _variances(residuals: Float64[np.ndarray, " observation"], groups: list[str]) -> tuple[float, float]:
    """Return the mean square of the groups' means, less their sampling error, and the variance within a group."""
    by_group = [residuals[np.array(groups) == group] for group in sorted(set(groups))]
    n_within = len(residuals) - len(by_group)
    within = float(sum(((of_group - of_group.mean()) ** 2).sum() for of_group in by_group)) / n_within
    squares = [of_group.mean() ** 2 - within / len(of_group) for of_group in by_group]
    return max(float(np.mean(squares)), 0.0), within
