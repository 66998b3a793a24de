"""Fit a learning curve with L(n) = L∞ + A · n^-b, to extrapolate the loss at which training saturates."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64
from scipy.stats import f as f_distribution
from scipy.stats import t as student_t

Status: TypeAlias = Literal["saturated", "under-trained", "diverged"]

MIN_POINTS, MIN_SPAN = 8, 10.0
"""Fewest points for a fit of three parameters, and the smallest ratio of the last to the first number of tokens."""
EXPONENTS = np.geomspace(0.05, 3.0, 400)
"""Exponents b that are tried."""
WARM_UP_SHARE = 0.1
"""Points before this share of the tokens are left out as warm-up."""
SATURATED_WITHIN = 0.05
"""A curve is saturated if its floor is within this share of the last loss."""
DIVERGED_ABOVE = 1.1
"""A curve has diverged if its last loss is above this multiple of its lowest."""


@dataclass(frozen=True)
class LearningCurveFit:
    """The fit L(n) = L∞ + A · n^-b of a learning curve. Losses are in the unit of the curve."""

    floor: float
    """L∞, the loss at which training saturates."""
    interval: tuple[float, float]
    """95 % confidence interval of `floor`. It covers the error of the fit, not that of the functional form."""
    amplitude: float
    """A."""
    exponent: float
    """b."""
    status: Status
    """"saturated": the lower end of the interval is within 5 % of the last loss; "under-trained": it is not;
    "diverged": the last loss is not finite, or more than 10 % above the lowest loss."""


def fit_learning_curve(n_tokens: npt.ArrayLike, loss: npt.ArrayLike) -> LearningCurveFit:
    """Fit L(n) = L∞ + A · n^-b to a learning curve, by least squares of the relative errors.

    For each exponent b the fit is linear in L∞ and A. The interval is the union of the confidence intervals of L∞ over
    all exponents whose squared error is not significantly larger than the smallest (F-test of all three parameters,
    95 %; Seber and Wild 1989, "Nonlinear Regression", section 5.3).

    Args:
        n_tokens: [point] tokens trained on, rising.
        loss: [point] losses on held-out text.

    Returns:
        The fit. If the curve has fewer than 8 points after the warm-up, or spans less than a factor of 10 in tokens,
        the floor is the last loss and its interval starts at 0.

    Raises:
        ValueError: the two do not have the same length, or are empty.

    Example:
        >>> n_tokens = np.geomspace(2e4, 1e6, 24)
        >>> fit = fit_learning_curve(n_tokens, 0.5 + 100.0 / n_tokens)
        >>> round(fit.floor, 3), fit.status
        (0.5, 'saturated')
    """
    n, losses = (np.asarray(values, dtype=np.float64) for values in (n_tokens, loss))
    if len(n) != len(losses) or not len(n):
        raise ValueError(f"a learning curve needs one loss per number of tokens, got {len(losses)} and {len(n)}")
    lowest, last = float(np.nanmin(losses, initial=math.inf)), float(losses[-1])
    if last == 0.0 and lowest == 0.0:
        return LearningCurveFit(0.0, (0.0, 0.0), 0.0, 0.0, "saturated")
    if not math.isfinite(last) or last > DIVERGED_ABOVE * lowest:
        return LearningCurveFit(lowest, (0.0, lowest), 0.0, 0.0, "diverged")
    after_warm_up = n >= WARM_UP_SHARE * n[-1]
    if after_warm_up.sum() < MIN_POINTS or n[-1] < MIN_SPAN * n[0]:
        return LearningCurveFit(last, (0.0, last), 0.0, 0.0, "under-trained")
    return _fit(n[after_warm_up], np.maximum(losses[after_warm_up], 1e-12), last)


def _fit(n: Float64[np.ndarray, " point"], loss: Float64[np.ndarray, " point"], last: float) -> LearningCurveFit:
    """Fit the curve after the warm-up, whose last loss is `last`, with the best exponent."""
    fits = np.array([_fit_exponent(n / n[-1], loss, exponent) for exponent in EXPONENTS])
    floors, amplitudes, unit_errors, squared_errors = fits.T
    best, degrees_of_freedom = int(squared_errors.argmin()), len(n) - 3
    f_bound = f_distribution.ppf(0.95, 3, degrees_of_freedom)
    plausible = squared_errors <= squared_errors[best] * (1 + 3 * f_bound / degrees_of_freedom)
    residual_error = np.sqrt(squared_errors[best] / degrees_of_freedom)
    margin = student_t.ppf(0.975, degrees_of_freedom) * residual_error * unit_errors[plausible]
    low = max(float((floors[plausible] - margin).min()), 0.0)
    high = float((floors[plausible] + margin).max())
    amplitude, exponent = float(amplitudes[best] * n[-1] ** EXPONENTS[best]), float(EXPONENTS[best])
    status: Status = "saturated" if last - low <= SATURATED_WITHIN * last else "under-trained"
    return LearningCurveFit(float(floors[best]), (low, high), amplitude, exponent, status)


def _fit_exponent(
    n: Float64[np.ndarray, " point"], loss: Float64[np.ndarray, " point"], exponent: float
) -> tuple[float, float, float, float]:
    """Fit L∞ and A, both at least 0, for one exponent.

    Args:
        n: [point] tokens, relative to those of the last point.
        loss: [point] losses.
        exponent: b.

    Returns:
        (L∞, A, the standard error of L∞ if the residual error is 1, the squared relative error).
    """
    constant, power = 1.0 / loss, n**-exponent / loss
    regressors = np.stack([constant, power], axis=1)
    floor, amplitude = np.linalg.lstsq(regressors, np.ones_like(loss), rcond=None)[0]
    unit_error = math.sqrt(float(np.linalg.pinv(regressors.T @ regressors)[0, 0]))
    if amplitude < 0:
        floor, amplitude = constant.sum() / (constant @ constant), 0.0
        unit_error = 1.0 / math.sqrt(constant @ constant)
    elif floor < 0:
        floor, amplitude = 0.0, power.sum() / (power @ power)
    squared_error = float(((floor * constant + amplitude * power - 1.0) ** 2).sum())
    return float(floor), float(amplitude), unit_error, squared_error
