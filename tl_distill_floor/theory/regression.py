"""Linear fits with confidence and prediction intervals, and their leave-one-group-out error."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64
from scipy.stats import t as student_t

from tl_distill_floor.errors import InputError

MIN_POINTS = 3
"""Fewest points for a fit with intervals."""
SMALLEST_VARIATION = 1e-20
"""An x whose Σ (x − mean)² is at most this share of Σ x² is constant up to rounding; its slope is 0."""

SMALLEST_RISE = 1e-9
"""A slope that changes the loss by at most this share of it is 0 up to rounding."""


class PredictedLoss(NamedTuple):
    """A predicted loss with its prediction interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LinearFit:
    """A least-squares fit, loss = slope · x + baseline.

    Intervals are 95 % confidence intervals from Student's t distribution with n − 2 degrees of freedom.
    """

    slope: float
    """C of Sarkar and Deka 2026, section 5, if x is a predicted floor."""
    baseline: float
    """B: the loss that does not depend on the width, nats per token."""
    slope_interval: tuple[float, float]
    baseline_interval: tuple[float, float]
    r2: float
    """Coefficient of determination R²."""
    loo_error: float
    """Leave-one-width-out error: mean absolute error of each loss, predicted by the fit to the other widths, as a share
    of the mean loss.

    It is not a mean of relative errors, which students with almost no loss would dominate."""
    x: tuple[float, ...]
    residual: float
    """Residual standard error √(SSR / (n − 2)), in the unit of the losses."""

    @property
    def rises(self) -> bool:
        """Whether the loss rises with x, by more than rounding. It must, if x is a predicted floor."""
        change = self.slope * (max(self.x) - min(self.x))
        return change > SMALLEST_RISE * (abs(self.baseline) + abs(change))

    def at(self, x: float, level: float = 0.95) -> PredictedLoss:
        """Predict the loss of a new student at `x`, with a two-sided prediction interval.

        Source: the standard formula, e.g. Montgomery et al. 2012, "Introduction to Linear Regression Analysis", section
        2.5. It needs only the stored fields; statsmodels would need the losses too.

        Args:
            x: predicted floor.
            level: coverage of the interval, inside (0, 1).

        Returns:
            The loss and its interval, at least 0.

        Example:
            >>> fit = fit_line(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 4.0]))
            >>> round(fit.at(1.0).value, 3)
            2.667
        """
        check_level(level)
        fitted_x, n = np.array(self.x), len(self.x)
        leverage = (x - fitted_x.mean()) ** 2 / max(((fitted_x - fitted_x.mean()) ** 2).sum(), 1e-300)
        margin = float(student_t.ppf(0.5 + level / 2, n - 2)) * self.residual * math.sqrt(1.0 + 1.0 / n + leverage)
        value = self.slope * x + self.baseline
        return PredictedLoss(*(max(bound, 0.0) for bound in (value, value - margin, value + margin)))


def check_level(level: float) -> None:
    """Raise an InputError unless a level is the probability of a two-sided interval, inside [0, 1).

    Example:
        >>> check_level(0.8)
    """
    if not 0 <= level < 1:
        raise InputError(f"the level of an interval must be a probability inside [0, 1), such as 0.8, got {level}")


def fit_line(
    x: Float64[np.ndarray, " student"],
    loss: Float64[np.ndarray, " student"],
    width: npt.ArrayLike | None = None,
) -> LinearFit:
    """Fit loss = slope · x + baseline by ordinary least squares.

    Args:
        x: [student] predicted floors.
        loss: [student] losses of trained students, nats per token.
        width: [student] widths; students of one width are left out together. None groups students by `x`.

    Returns:
        The fit, with its intervals and its leave-one-width-out error.

    Raises:
        ValueError: there are fewer than 3 points.

    Example:
        >>> fit_line(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 4.0])).slope
        1.5
    """
    if len(x) < MIN_POINTS:
        raise ValueError(f"a linear fit with intervals needs at least {MIN_POINTS} points, got {len(x)}")
    fit = _ordinary_least_squares(x, loss)
    baseline, slope = _both_coefficients(fit.params)
    baseline_interval, slope_interval = (tuple(bounds.tolist()) for bounds in _both_coefficients(fit.conf_int()))
    return LinearFit(
        slope=float(slope),
        baseline=float(baseline),
        slope_interval=slope_interval,
        baseline_interval=baseline_interval,
        r2=float(fit.rsquared) if fit.centered_tss > 0 else 1.0,
        loo_error=leave_one_out_error(x, loss, width),
        x=tuple(x.tolist()),
        residual=math.sqrt(float(fit.mse_resid)),
    )


def leave_one_out_error(
    x: Float64[np.ndarray, " student"],
    loss: Float64[np.ndarray, " student"],
    width: npt.ArrayLike | None = None,
) -> float:
    """Compute the mean absolute error of each loss, predicted by the linear fit to the students of other widths.

    Args:
        x: [student] predicted floors.
        loss: [student] losses of trained students.
        width: [student] widths. None groups students by `x`.

    Returns:
        The error as a share of the mean loss.

    Example:
        >>> round(leave_one_out_error(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 4.0])), 4)
        0.3125
    """
    from sklearn.model_selection import LeaveOneGroupOut

    groups = x if width is None else np.asarray(width)
    errors: list[float] = []
    for fitted, left_out in LeaveOneGroupOut().split(x, groups=groups):
        baseline, slope = _both_coefficients(_ordinary_least_squares(x[fitted], loss[fitted]).params)
        errors += np.abs(slope * x[left_out] + baseline - loss[left_out]).tolist()
    return float(np.mean(errors)) / float(loss.mean())


def _ordinary_least_squares(x: Float64[np.ndarray, " student"], loss: Float64[np.ndarray, " student"]) -> Any:
    """Return statsmodels' results of loss = baseline + slope · x, or of loss = baseline if x is constant."""
    from statsmodels.regression.linear_model import OLS

    centred = x - x.mean()
    is_constant = float(centred @ centred) <= SMALLEST_VARIATION * float(x @ x)
    model = OLS(loss, np.column_stack([np.ones_like(x)] if is_constant else [np.ones_like(x), x]))
    model.df_resid = len(x) - 2.0  # also if x is constant
    return model.fit()


def _both_coefficients(estimates: Float64[np.ndarray, "coefficient *rest"]) -> Float64[np.ndarray, "2 *rest"]:
    """Return the estimates of the baseline and of the slope, which are 0 for the slope of a constant x."""
    both = np.zeros((2, *estimates.shape[1:]))
    both[: len(estimates)] = estimates
    return both
