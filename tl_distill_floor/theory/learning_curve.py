"""Fit a learning curve with L(n) = L∞ + A · (n − s)^-b, to extrapolate the loss at which training saturates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64
from scipy.stats import f as f_distribution
from scipy.stats import norm

from tl_distill_floor.theory.rate_schedule import (
    DECAY_START,
    SHIFTS,
    SMALLEST_CHANGE,
    WARM_UP_SHARE,
    is_constant_until_decay,
    tokens_by_rate,
)

Status: TypeAlias = Literal["saturated", "under-trained", "diverged"]
MIN_POINTS, MIN_SPAN = 8, 10.0
"""Fewest points for a fit of four parameters, and the smallest ratio of the last to the first number of tokens."""
EXPONENTS = np.geomspace(0.05, 3.0, 100)
"""Exponents b that are tried first. The best one is then refined to about one part in a million."""
N_REFINEMENTS, REFINED_EXPONENTS = 3, 41
"""How often exponents close to the best one are tried, and how many each time."""
MIN_POINTS_BEFORE_DECAY = 6
"""Fewest points before the decay for a fit without the points of the decay."""
NOISE_FLOOR = 1e-3
"""Smallest relative error of a point: what a curve without noise differs from the functional form."""
LARGEST_EXTRAPOLATION = 3.0
"""Largest factor between the last loss and a floor that is reported; a lower floor is not known."""
REMAINING_FACTOR = 3.0
"""Factor within which what is left to lose is known, at best. A power law continues a real learning curve worse than it
fits it: see `with_misfit`."""
SATURATED_WITHIN = 0.05
"""A curve is saturated if its floor is within this share of the last loss."""
DIVERGED_ABOVE, DIVERGED_ERRORS = 1.1, 5.0
"""A curve has diverged if its last loss is above this multiple of its lowest, and by so many errors of a loss."""
PARTS_OF_RISE = 20
"""Points of which one of so many parts of a curve is averaged, to see a rise below the noise of single points."""
PARTS_OF_NOISE = 8
"""Points of which one of so many parts of a curve is the longest distance over which noise is estimated."""
MIN_POINTS_OF_NOISE = 12
"""Fewest points that the error of one point is estimated from; of fewer it is taken as 0."""
ROUNDING = 1e-6
"""Losses up to this are 0 but for rounding, nats: those of a student that equals its teacher."""


@dataclass(frozen=True)
class LearningCurveFit:
    """The fit L(n) = L∞ + A · (n − s)^-b of a learning curve. Losses are in the unit of the curve.

    If the learning rates are used, n is the number of tokens that `tokens_by_rate` returns.
    """

    floor: float
    """L∞, the loss at which training saturates; the last loss if it is not known."""
    interval: tuple[float, float]
    """95 % interval of `floor`: `fit_interval`, and how far real learning curves are from power laws (`with_misfit`);
    from 0 to the last loss if the floor is not known."""
    fit_interval: tuple[float, float]
    """95 % confidence interval of `floor` if the curve is the power law and noise."""
    amplitude: float
    """A; 0 if the floor is not known."""
    exponent: float
    """b; 0 if the floor is not known."""
    status: Status
    """"saturated": the lower end of the interval is within 5 % of the last loss; "under-trained": it is not;
    "diverged": see `has_diverged`."""


def fit_learning_curve(
    n_tokens: npt.ArrayLike, loss: npt.ArrayLike, rates: npt.ArrayLike | None = None
) -> LearningCurveFit:
    """Fit L(n) = L∞ + A · (n − s)^-b to a learning curve, by least squares of the relative errors.

    For each exponent b and each shift s, the fit is linear in L∞ and A (variable projection, Golub and Pereyra 1973).
    The interval of the fit holds every L∞ whose best curve is not significantly worse than the best of all (profile
    likelihood, F-test of one parameter, 95 %; Seber and Wild 1989, "Nonlinear Regression", section 5.4). It is the
    union of two intervals, with and without the points at which the learning rate may have decayed. The lower end of
    the second is lowered by what the decay has gained. A relative error below 0.1 % is not taken to be known, so curves
    without noise have an interval too.

    Learning rates that are given and are not constant until the decay change two things: n is the number of tokens
    weighted by the learning rate, and a multiple of the learning rate is added to the curve, which is noise that a
    lower rate takes away. The interval of the fit is then the union of two others: the noise is a loss, or a share of
    the loss.

    Args:
        n_tokens: [point] tokens trained on, rising.
        loss: [point] losses on held-out text.
        rates: [point] learning rates, in any unit; if None, they are taken as constant until a decay in the last fifth.

    Returns:
        The fit. The floor is not known if the curve has fewer than 8 points after the warm-up, spans less than a factor
        of 10 in tokens, or has its best L∞ below a third of the last loss. Then the floor is the last loss, its
        interval starts at 0, and the status is "under-trained".

    Raises:
        ValueError: the arguments do not have the same length, or are empty.

    Example:
        >>> n_tokens = np.geomspace(2e4, 1e6, 24)
        >>> fit = fit_learning_curve(n_tokens, 0.5 + 100.0 / n_tokens)
        >>> round(fit.floor, 3), fit.status
        (0.5, 'saturated')
    """
    n, losses = (np.asarray(values, dtype=np.float64) for values in (n_tokens, loss))
    if len(n) != len(losses) or not len(n):
        raise ValueError(f"a learning curve needs one loss per number of tokens, got {len(losses)} and {len(n)}")
    if rates is not None and np.shape(rates) != n.shape:
        raise ValueError(f"a learning curve needs one learning rate per number of tokens, got {np.shape(rates)}")
    schedule = None if rates is None or is_constant_until_decay(n, rates) else np.asarray(rates, dtype=np.float64)
    if schedule is not None:
        n = tokens_by_rate(n, schedule)
    lowest, last = float(np.nanmin(losses, initial=math.inf)), float(losses[-1])
    if last <= ROUNDING:
        return LearningCurveFit(lowest, (0.0, last), (0.0, last), 0.0, 0.0, "saturated")
    if has_diverged(losses):
        return LearningCurveFit(lowest, (0.0, lowest), (0.0, lowest), 0.0, 0.0, "diverged")
    after_warm_up = n >= WARM_UP_SHARE * n[-1]
    if after_warm_up.sum() >= MIN_POINTS and n[-1] >= MIN_SPAN * n[0]:
        schedule = None if schedule is None else schedule[after_warm_up]
        fit = _fit(n[after_warm_up], np.maximum(losses[after_warm_up], 1e-12), last, schedule)
        if fit.floor * LARGEST_EXTRAPOLATION >= last:
            return fit
    return LearningCurveFit(last, (0.0, last), (0.0, last), 0.0, 0.0, "under-trained")


def with_misfit(interval: tuple[float, float], floor: float, last: float) -> tuple[float, float]:
    """Widen the interval of L∞ by how badly power laws continue real learning curves.

    What is left, the last loss less L∞, is known within a factor of 3 at best. Fits to the first third and the first
    half of real trainings differed by up to that much from fits to the full ones, in 95 % of the cases.

    Args:
        interval: 95 % interval of L∞, from the fit.
        floor: L∞.
        last: the last loss.

    Example:
        >>> [round(end, 2) for end in with_misfit((0.68, 0.72), 0.7, 1.0)]
        [0.1, 0.9]
    """
    left = max(last - floor, 0.0)
    low, high = last - REMAINING_FACTOR * left, last - left / REMAINING_FACTOR
    return max(min(interval[0], low), 0.0), max(interval[1], high)


def has_diverged(loss: npt.ArrayLike) -> bool:
    """Return whether the last loss is not finite, or more than 10 % above the lowest, and more than noise explains.

    The lowest of many noisy losses is far below the curve, so a loss is compared with the lowest median of three
    neighbours. Losses are compared one by one, and averaged over a twentieth of the points.

    Args:
        loss: [point] losses in the order of the training.

    Example:
        >>> has_diverged([1.0, 0.5, 0.6]), has_diverged([1.0, 0.5, 0.52])
        (True, False)
    """
    losses = np.asarray(loss, dtype=np.float64)
    if not math.isfinite(losses[-1]):
        return True
    logs = np.log(np.maximum(losses[np.isfinite(losses)], ROUNDING))
    for n in {1, max(1, len(logs) // PARTS_OF_RISE)}:
        means, noise = np.convolve(logs, np.full(n, 1.0 / n), "valid"), 0.0
        lowest = means.min()
        if len(logs) >= MIN_POINTS_OF_NOISE:
            noise = _noise(means, n, len(logs) // PARTS_OF_NOISE)
            lowest = np.median(np.stack([means[:-2], means[1:-1], means[2:]]), axis=0).min()
        if means[-1] - lowest > max(math.log(DIVERGED_ABOVE), DIVERGED_ERRORS * noise):
            return True
    return False


def _noise(values: Float64[np.ndarray, " point"], shortest: int, longest: int) -> float:
    """Estimate the standard deviation of the noise of a curve from differences over several distances.

    Second differences hardly depend on how fast a curve falls or rises. Those of neighbours are too small if the noise
    of neighbours is alike, as in averages of a log, so that the largest estimate counts.

    Args:
        values: values of the curve.
        shortest: shortest distance, points; each further one is twice as long.
        longest: longest distance, unless `shortest` is longer.
    """
    estimates, distance = [], shortest
    while distance <= max(shortest, longest):
        differences = values[: -2 * distance] - 2.0 * values[distance:-distance] + values[2 * distance :]
        estimates.append(float(np.median(np.abs(differences))) / (math.sqrt(6.0) * float(norm.ppf(0.75))))
        distance *= 2
    return max(estimates)


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
    """Fits of L∞ and A, each for a shift and an exponent."""

    shift: Float64[np.ndarray, " fit"]
    """s."""
    exponent: Float64[np.ndarray, " fit"]
    """b."""
    floor: Float64[np.ndarray, " fit"]
    """L∞, at least 0."""
    amplitude: Float64[np.ndarray, " fit"]
    """A, at least 0."""
    squared_error: Float64[np.ndarray, " fit"]
    """Squared relative error of this fit."""
    free_floor: Float64[np.ndarray, " fit"]
    """L∞ of the fit without bounds."""
    unit_error: Float64[np.ndarray, " fit"]
    """Standard error of `free_floor` if the residual error is 1."""
    free_squared_error: Float64[np.ndarray, " fit"]
    """Squared relative error of the fit without bounds."""
    zero_squared_error: Float64[np.ndarray, " fit"]
    """Squared relative error of the fit with L∞ = 0."""


def _fit(
    n: Float64[np.ndarray, " point"],
    loss: Float64[np.ndarray, " point"],
    last: float,
    rates: Float64[np.ndarray, " point"] | None,
) -> LearningCurveFit:
    """Fit the curve after the warm-up, whose last loss is `last`."""
    share = n / n[-1]
    if rates is not None and np.ptp(rates) > SMALLEST_CHANGE * rates.max():
        # The learning rate may add a loss, or a share of the loss.
        profile, of_share = _profile(share, loss, rates / loss), _profile(share, loss, rates)
        low, high = min(profile.low, of_share.low), max(profile.high, of_share.high)
    else:
        profile = _profile(share, loss)
        low, high = _union_without_decay(share, loss, profile)
    amplitude = profile.amplitude * n[-1] ** profile.exponent
    interval = with_misfit((low, high), profile.floor, last)
    status: Status = "saturated" if last - interval[0] <= SATURATED_WITHIN * last else "under-trained"
    return LearningCurveFit(profile.floor, interval, (low, high), float(amplitude), profile.exponent, status)


def _union_without_decay(
    share: Float64[np.ndarray, " point"], loss: Float64[np.ndarray, " point"], profile: _Profile
) -> tuple[float, float]:
    """Return the union of the interval of L∞ and of that without the points of the decay, less what the decay gained.

    Args:
        share: [point] tokens, relative to those of the last point of the curve.
        loss: [point] losses.
        profile: the fit to all points.
    """
    before_decay = share <= DECAY_START
    if before_decay.sum() < MIN_POINTS_BEFORE_DECAY:
        return profile.low, profile.high
    early = _profile(share[before_decay], loss[before_decay])
    gain = max(0.0, float(early.at(share[-1:])[0] - loss[-1]))
    return max(min(profile.low, early.low - gain), 0.0), max(profile.high, early.high)


def _profile(
    n: Float64[np.ndarray, " point"],
    loss: Float64[np.ndarray, " point"],
    term: Float64[np.ndarray, " point"] | None = None,
) -> _Profile:
    """Fit all four parameters, and return the interval of L∞ from its profile likelihood.

    Args:
        n: [point] tokens, relative to those of the last point of the curve.
        loss: [point] losses.
        term: [point] relative errors, of which a multiple is added to the curve; None to add nothing.
    """
    other = None if term is None else term / np.linalg.norm(term)
    fits = _join([_fits_at_shift(n, shift, loss, other) for shift in SHIFTS.tolist()])
    best = int(fits.squared_error.argmin())
    floor, least_error = float(fits.floor[best]), float(fits.squared_error[best])
    degrees_of_freedom = len(n) - (4 if other is None else 5)
    variance = max(least_error / degrees_of_freedom, NOISE_FLOOR**2)
    bound = least_error + variance * float(f_distribution.ppf(0.95, 1, degrees_of_freedom))
    plausible = fits.free_squared_error <= bound
    margin = np.sqrt(np.maximum(bound - fits.free_squared_error, 0.0)) * fits.unit_error
    low = 0.0 if (fits.zero_squared_error <= bound).any() else (fits.free_floor - margin)[plausible].min(initial=floor)
    high = (fits.free_floor + margin)[plausible].max(initial=floor)
    amplitude, exponent, shift = (float(values[best]) for values in (fits.amplitude, fits.exponent, fits.shift))
    return _Profile(floor, amplitude, exponent, shift, max(float(low), 0.0), float(high))


def _fits_at_shift(
    n: Float64[np.ndarray, " point"],
    shift: float,
    loss: Float64[np.ndarray, " point"],
    other: Float64[np.ndarray, " point"] | None,
) -> _LinearFits:
    """Fit L∞ and A at all of `EXPONENTS`, and at exponents that close in on the best one; see `_linear_fits`."""
    all_fits, spacing = [_linear_fits(n, shift, loss, EXPONENTS, other)], float(EXPONENTS[1] / EXPONENTS[0])
    for _ in range(N_REFINEMENTS):
        best = all_fits[-1].exponent[all_fits[-1].squared_error.argmin()]
        nearby = best * np.geomspace(1 / spacing, spacing, REFINED_EXPONENTS)
        all_fits.append(_linear_fits(n, shift, loss, nearby, other))
        spacing = float(nearby[1] / nearby[0])
    return _join(all_fits)


def _join(fits: Sequence[_LinearFits]) -> _LinearFits:
    """Return several sets of fits as one."""
    return _LinearFits(*(np.concatenate(values) for values in zip(*fits, strict=True)))


def _linear_fits(
    n: Float64[np.ndarray, " point"],
    shift: float,
    loss: Float64[np.ndarray, " point"],
    exponents: Float64[np.ndarray, " exponent"],
    other: Float64[np.ndarray, " point"] | None,
) -> _LinearFits:
    """Fit L∞ and A for each exponent, from the normal equations of the relative errors.

    Args:
        n: [point] tokens.
        shift: s.
        loss: [point] losses.
        exponents: b.
        other: [point] unit vector of the relative errors that another term of the curve explains; None for no term.
    """
    columns = [1.0 / loss, (n - shift)[None] ** -exponents[:, None] / loss, np.ones(len(loss))]
    if other is not None:  # taken out of both sides (Frisch and Waugh 1933), so that L∞ and A are left
        columns = [values - np.multiply.outer(values @ other, other) for values in columns]
    constant, power, target = columns
    constant_square, power_square, product = constant @ constant, (power**2).sum(1), power @ constant
    determinant = np.maximum(constant_square * power_square - product**2, 1e-300)
    constant_target, power_target = constant @ target, power @ target
    free_floor = (power_square * constant_target - product * power_target) / determinant
    free_amplitude = (constant_square * power_target - product * constant_target) / determinant
    flat_floor, zero_amplitude = constant_target / constant_square, power_target / power_square

    rises, below_zero = free_amplitude < 0, free_floor < 0
    floor = np.where(rises, flat_floor, np.maximum(free_floor, 0.0))
    amplitude = np.where(rises, 0.0, np.where(below_zero, zero_amplitude, free_amplitude))
    squared_error, free_squared_error, zero_squared_error = (
        ((f[:, None] * constant + a[:, None] * power - target) ** 2).sum(1)
        for f, a in ((floor, amplitude), (free_floor, free_amplitude), (np.zeros_like(floor), zero_amplitude))
    )
    return _LinearFits(
        shift=np.full_like(exponents, shift),
        exponent=exponents,
        floor=floor,
        amplitude=amplitude,
        squared_error=squared_error,
        free_floor=free_floor,
        unit_error=np.sqrt(power_square / determinant),
        free_squared_error=free_squared_error,
        zero_squared_error=zero_squared_error,
    )
