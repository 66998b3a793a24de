"""Fit a learning curve with L(n) = L∞ + A · (n − s)^-b, to extrapolate the loss at which training saturates."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64
from scipy.stats import f as f_distribution
from scipy.stats import norm

Status: TypeAlias = Literal["saturated", "under-trained", "diverged"]
MIN_POINTS, MIN_SPAN = 8, 10.0
"""Fewest points for a fit of four parameters, and the smallest ratio of the last to the first number of tokens."""
EXPONENTS = np.geomspace(0.05, 3.0, 100)
"""Exponents b that are tried first. The best one is then refined to about one part in a million."""
N_REFINEMENTS, REFINED_EXPONENTS = 3, 41
SHIFTS = np.linspace(-0.01, 0.02, 7)
"""Shifts s that are tried, as shares of the tokens. Tokens of the warm-up count for less; a start from the teacher's
weights is worth some tokens."""
WARM_UP_SHARE = 0.1
"""Points before this share of the tokens are left out as warm-up."""
DECAY_START = 0.8
"""Points after this share of the tokens may be lower because the learning rate is decaying."""
MIN_POINTS_BEFORE_DECAY = 6
NOISE_FLOOR = 1e-3
"""Smallest relative error of a point: what a curve without noise differs from the functional form."""
LARGEST_EXTRAPOLATION = 3.0
"""Largest factor between the last loss and a floor that is reported; a lower floor is not known."""
SATURATED_WITHIN = 0.05
"""A curve is saturated if its floor is within this share of the last loss."""
DIVERGED_ABOVE = 1.1
"""A curve has diverged if its last loss is above this multiple of its lowest."""
ROUNDING = 1e-6
"""Losses up to this are 0 but for rounding, nats: those of a student that equals its teacher."""


@dataclass(frozen=True)
class LearningCurveFit:
    """The fit L(n) = L∞ + A · (n − s)^-b of a learning curve. Losses are in the unit of the curve."""

    floor: float
    """L∞, the loss at which training saturates; the last loss if it is not known."""
    interval: tuple[float, float]
    """95 % confidence interval of `floor`; from 0 to the last loss if it is not known."""
    amplitude: float
    """A; 0 if the floor is not known."""
    exponent: float
    """b; 0 if the floor is not known."""
    status: Status
    """"saturated": the lower end of the interval is within 5 % of the last loss; "under-trained": it is not;
    "diverged": the last loss is not finite, or more than 10 % above the lowest loss."""


def fit_learning_curve(n_tokens: npt.ArrayLike, loss: npt.ArrayLike) -> LearningCurveFit:
    """Fit L(n) = L∞ + A · (n − s)^-b to a learning curve, by least squares of the relative errors.

    For each exponent b and each shift s, the fit is linear in L∞ and A (variable projection, Golub and Pereyra 1973).
    The interval holds every L∞ whose best curve is not significantly worse than the best of all (profile likelihood,
    F-test of one parameter, 95 %; Seber and Wild 1989, "Nonlinear Regression", section 5.4). It is the union of two
    intervals, with and without the points at which the learning rate may have decayed. The lower end of the second is
    lowered by what the decay has gained. A relative error below 0.1 % is not taken to be known, so curves without
    noise have an interval too.

    Args:
        n_tokens: [point] tokens trained on, rising.
        loss: [point] losses on held-out text.

    Returns:
        The fit. The floor is not known if the curve has fewer than 8 points after the warm-up, spans less than a factor
        of 10 in tokens, or has its best L∞ below a third of the last loss. Then the floor is the last loss, its
        interval starts at 0, and the status is "under-trained".

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
    if last <= ROUNDING:
        return LearningCurveFit(lowest, (0.0, last), 0.0, 0.0, "saturated")
    if not math.isfinite(last) or last > DIVERGED_ABOVE * lowest:
        return LearningCurveFit(lowest, (0.0, lowest), 0.0, 0.0, "diverged")
    after_warm_up = n >= WARM_UP_SHARE * n[-1]
    if after_warm_up.sum() >= MIN_POINTS and n[-1] >= MIN_SPAN * n[0]:
        fit = _fit(n[after_warm_up], np.maximum(losses[after_warm_up], 1e-12), last)
        if fit.floor * LARGEST_EXTRAPOLATION >= last:
            return fit
    return LearningCurveFit(last, (0.0, last), 0.0, 0.0, "under-trained")


def log_error(floor: float, interval: tuple[float, float]) -> float:
    """Return the standard error of the logarithm of L∞, from its interval.

    Args:
        floor: L∞, above 0.
        interval: its 95 % interval. A lower end below a third of L∞ counts as a third, as no L∞ is known better.

    Example:
        >>> round(log_error(0.5, (0.45, 0.55)), 3)
        0.051
        >>> log_error(0.5, (0.0, 0.5)) == log_error(0.5, (0.5 / 3, 0.5))
        True
    """
    low, high = interval
    return math.log(max(high, floor) / max(low, floor / LARGEST_EXTRAPOLATION)) / (2.0 * float(norm.ppf(0.975)))


class _Profile(NamedTuple):
    """Best curve of a set of points, and the confidence interval of its floor."""

    floor: float
    amplitude: float
    exponent: float
    shift: float
    low: float
    high: float

    def at(self, n: Float64[np.ndarray, " point"]) -> Float64[np.ndarray, " point"]:
        """Return the losses of the best curve."""
        losses: Float64[np.ndarray, " point"] = self.floor + self.amplitude * (n - self.shift) ** -self.exponent
        return losses


class _LinearFits(NamedTuple):
    """Fits of L∞ and A for one shift and several exponents."""

    exponent: Float64[np.ndarray, " exponent"]
    """b."""
    floor: Float64[np.ndarray, " exponent"]
    """L∞, at least 0."""
    amplitude: Float64[np.ndarray, " exponent"]
    """A, at least 0."""
    squared_error: Float64[np.ndarray, " exponent"]
    """Squared relative error of this fit."""
    free_floor: Float64[np.ndarray, " exponent"]
    """L∞ of the fit without bounds."""
    unit_error: Float64[np.ndarray, " exponent"]
    """Standard error of `free_floor` if the residual error is 1."""
    free_squared_error: Float64[np.ndarray, " exponent"]
    """Squared relative error of the fit without bounds."""
    zero_squared_error: Float64[np.ndarray, " exponent"]
    """Squared relative error of the fit with L∞ = 0."""


def _fit(n: Float64[np.ndarray, " point"], loss: Float64[np.ndarray, " point"], last: float) -> LearningCurveFit:
    """Fit the curve after the warm-up, whose last loss is `last`."""
    share = n / n[-1]
    profile = _profile(share, loss)
    low, high = profile.low, profile.high
    before_decay = share <= DECAY_START
    if before_decay.sum() >= MIN_POINTS_BEFORE_DECAY:
        early = _profile(share[before_decay], loss[before_decay])
        gain = max(0.0, float(early.at(share[-1:])[0] - loss[-1]))
        low, high = min(low, early.low - gain), max(high, early.high)
    low = max(low, 0.0)
    amplitude = profile.amplitude * n[-1] ** profile.exponent
    status: Status = "saturated" if last - low <= SATURATED_WITHIN * last else "under-trained"
    return LearningCurveFit(profile.floor, (low, high), float(amplitude), profile.exponent, status)


def _profile(n: Float64[np.ndarray, " point"], loss: Float64[np.ndarray, " point"]) -> _Profile:
    """Fit all four parameters, and return the interval of L∞ from its profile likelihood.

    Args:
        n: [point] tokens, relative to those of the last point of the curve.
        loss: [point] losses.
    """
    by_shift = [_fits_at_exponents(n - shift, loss) for shift in SHIFTS]
    best_shift = int(np.argmin([fits.squared_error.min() for fits in by_shift]))
    best = int(by_shift[best_shift].squared_error.argmin())
    floor, amplitude, exponent, least_error = (
        float(values[best])
        for values in (
            by_shift[best_shift].floor,
            by_shift[best_shift].amplitude,
            by_shift[best_shift].exponent,
            by_shift[best_shift].squared_error,
        )
    )
    degrees_of_freedom = len(n) - 4
    variance = max(least_error / degrees_of_freedom, NOISE_FLOOR**2)
    bound = least_error + variance * float(f_distribution.ppf(0.95, 1, degrees_of_freedom))
    low = high = floor
    for fits in by_shift:
        plausible = fits.free_squared_error <= bound
        margin = np.sqrt(np.maximum(bound - fits.free_squared_error, 0.0)) * fits.unit_error
        low = min(low, float((fits.free_floor - margin)[plausible].min(initial=low)))
        high = max(high, float((fits.free_floor + margin)[plausible].max(initial=high)))
        if (fits.zero_squared_error <= bound).any():
            low = 0.0
    return _Profile(floor, amplitude, exponent, float(SHIFTS[best_shift]), max(low, 0.0), high)


def _fits_at_exponents(n: Float64[np.ndarray, " point"], loss: Float64[np.ndarray, " point"]) -> _LinearFits:
    """Fit L∞ and A at all of `EXPONENTS`, and at exponents that close in on the best one."""
    all_fits, spacing = [_linear_fits(n, loss, EXPONENTS)], float(EXPONENTS[1] / EXPONENTS[0])
    for _ in range(N_REFINEMENTS):
        best = all_fits[-1].exponent[all_fits[-1].squared_error.argmin()]
        nearby = best * np.geomspace(1 / spacing, spacing, REFINED_EXPONENTS)
        all_fits.append(_linear_fits(n, loss, nearby))
        spacing = float(nearby[1] / nearby[0])
    return _LinearFits(*(np.concatenate(values) for values in zip(*all_fits, strict=True)))


def _linear_fits(
    n: Float64[np.ndarray, " point"], loss: Float64[np.ndarray, " point"], exponents: Float64[np.ndarray, " exponent"]
) -> _LinearFits:
    """Fit L∞ and A for each exponent, from the normal equations of the relative errors.

    Args:
        n: [point] tokens, shifted.
        loss: [point] losses.
        exponents: b.
    """
    constant, power = 1.0 / loss, n[None] ** -exponents[:, None] / loss
    constant_square, power_square, product = constant @ constant, (power**2).sum(1), power @ constant
    determinant = np.maximum(constant_square * power_square - product**2, 1e-300)
    free_floor = (power_square * constant.sum() - product * power.sum(1)) / determinant
    free_amplitude = (constant_square * power.sum(1) - product * constant.sum()) / determinant
    flat_floor, zero_amplitude = constant.sum() / constant_square, power.sum(1) / power_square

    rises, below_zero = free_amplitude < 0, free_floor < 0
    floor = np.where(rises, flat_floor, np.maximum(free_floor, 0.0))
    amplitude = np.where(rises, 0.0, np.where(below_zero, zero_amplitude, free_amplitude))
    squared_error, free_squared_error, zero_squared_error = (
        ((f[:, None] * constant + a[:, None] * power - 1.0) ** 2).sum(1)
        for f, a in ((floor, amplitude), (free_floor, free_amplitude), (np.zeros_like(floor), zero_amplitude))
    )
    return _LinearFits(
        exponent=exponents,
        floor=floor,
        amplitude=amplitude,
        squared_error=squared_error,
        free_floor=free_floor,
        unit_error=np.sqrt(power_square / determinant),
        free_squared_error=free_squared_error,
        zero_squared_error=zero_squared_error,
    )
