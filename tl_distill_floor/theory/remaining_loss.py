"""Estimate which share of a student's loss more training tokens would remove, from its learning curve."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64
from scipy.special import log_ndtr
from scipy.stats import t as student_t

from tl_distill_floor.theory.rate_schedule import DECAY_START, SMALLEST_CHANGE, WARM_UP_SHARE

EXPONENTS = np.geomspace(0.08, 2.0, 60)
"""Exponents b of the slower of the two power laws."""
RATIOS = {1.0: 0.6, 2.0: 0.2, 4.0: 0.2}
"""Ratios r of the exponents of the two power laws, each with its probability before the curve is seen."""
SHIFTS = (-0.01, 0.0, 0.01, 0.02)
"""Shifts s, as shares of the tokens; see `rate_schedule.SHIFTS`."""
TYPICAL_EXPONENT, LOG_SPREAD = 0.5, 0.6
"""Median of b · √r before the curve is seen, and the standard deviation of its logarithm."""
MISFIT = 0.005
"""Smallest relative error of a point: how far the power laws themselves are from learning curves."""
MIN_POINTS = 6
"""Fewest points that are neither in the warm-up nor in the decay."""
MIN_SPAN = 3.0
"""Smallest ratio of the tokens of the last to those of the first of these points."""
QUANTILES = np.linspace(0.0, 1.0, 101) ** 2
"""Shares of the largest remaining loss at which the distribution is computed; more of them near 0."""
N_PROBABILITIES = 200
"""Values by which each of two distributions is represented to compute that of their sum."""


@dataclass(frozen=True, eq=False)
class RemainingLoss:
    """Probability distribution of the share of the last loss that more tokens would remove."""

    shares: Float64[np.ndarray, " share"]
    """Shares from 0 to the largest that the bound allows."""
    cumulative: Float64[np.ndarray, " share"]
    """Probability that what remains is at most this share."""
    half_factor: float
    """Median factor by which the tokens grow until half of what remains is gained."""
    noise: float
    """Relative error of one point of the curve, so also of its last loss."""
    degrees_of_freedom: int
    """Degrees of freedom of the fit that `noise` is estimated from."""

    def quantile(self, probability: float) -> float:
        """Return the share that what remains does not exceed with some probability.

        Args:
            probability: from 0 to 1.

        Returns:
            Share of the last loss.

        Example:
            >>> remaining.quantile(0.5)  # doctest: +SKIP
        """
        return float(np.interp(probability, self.cumulative, self.shares))

    def end_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the interval of the loss at which training saturates, with the error of the last loss.

        Args:
            level: probability of the two-sided interval.

        Returns:
            Shares of the last loss; the upper end is above 1 if the last loss may be too low by chance.

        Example:
            >>> remaining.end_interval()  # doctest: +SKIP
        """
        probabilities = (np.arange(N_PROBABILITIES) + 0.5) / N_PROBABILITIES
        remaining = np.interp(probabilities, self.cumulative, self.shares)
        ends = 1.0 + self.noise * student_t.ppf(probabilities, self.degrees_of_freedom)[:, None] - remaining
        low, high = np.quantile(ends, (0.5 - level / 2, 0.5 + level / 2)).tolist()
        return low, high

    def probability_above(self, share: float) -> float:
        """Return the probability that more remains than a share of the last loss.

        Args:
            share: from 0 to 1.

        Returns:
            Probability.

        Example:
            >>> remaining.probability_above(0.1)  # doctest: +SKIP
        """
        return float(1.0 - np.interp(share, self.shares, self.cumulative, right=1.0))


@np.errstate(under="ignore")  # probabilities far from the maximum are 0, also where the caller raises errors
def remaining_loss(
    n_tokens: npt.ArrayLike, loss: npt.ArrayLike, bound: float = 0.0, rates: npt.ArrayLike | None = None
) -> RemainingLoss | None:
    """Return how much of the last loss more tokens would remove, as a probability distribution.

    A learning curve is L∞ + A · (x^-b + x^-rb) / 2 with x = (n − s) / (N − s) and relative Gaussian errors, where N is
    the number of tokens at the last point, so that A is what remains there. Two power laws are needed because real
    losses fall fast at first and slowly later, and a single one predicts that they end too high. The distribution is
    the posterior one (Gelman et al. 2013, "Bayesian Data Analysis", sections 3.2 and 14.2): A and L∞ are uniform, A
    from 0 to the last loss less the bound, and log b is normal. Given b, r and s the curve is linear in A and L∞, so
    these are integrated exactly; b, r and s are summed over grids. The error is estimated from the best fit, and at
    least 0.5 %.

    If the learning rates are given and differ, a multiple of them is added to the curve: noise that a lower learning
    rate takes away.

    Points of the warm-up, before a tenth of the tokens, are left out. So are those after 80 %: a decay of the learning
    rate lowers them in a way that more tokens would not continue.

    Args:
        n_tokens: [point] tokens trained on, rising, above 0.
        loss: [point] losses on held-out text.
        bound: least loss that is possible, in the unit of the losses.
        rates: [point] learning rates, in any unit; constant if None.

    Returns:
        The distribution; None if fewer than 6 points are left, or they span less than a factor of 3 in tokens.

    Example:
        >>> n_tokens = np.geomspace(2e4, 1e6, 24)
        >>> remaining = remaining_loss(n_tokens, 0.5 + 100.0 / n_tokens)
        >>> remaining.quantile(0.5) < 0.01, remaining.probability_above(0.1) < 0.05
        (True, True)
    """
    n, losses = (np.asarray(values, dtype=np.float64) for values in (n_tokens, loss))
    share, last = n / n[-1], float(losses[-1])
    used = is_fitted(n)
    most = last - bound
    if used.sum() < MIN_POINTS or share[used][-1] < MIN_SPAN * share[used][0] or most <= 0:
        return None
    others = _other_terms(losses[used], None if rates is None else np.asarray(rates, dtype=np.float64)[used])
    fits = [_amplitudes(share[used], losses[used], others, shift, ratio) for shift in SHIFTS for ratio in RATIOS]
    mean, unit_error, squared_error, log_weight = (np.stack(part) for part in zip(*fits, strict=True))
    degrees_of_freedom = max(int(used.sum()) - 3 - others.shape[1], 1)
    noise_variance = float(squared_error.min()) / degrees_of_freedom
    variance = max(noise_variance, MISFIT**2)
    error = np.sqrt(variance) * unit_error
    log_possible = _log_probability(-mean / error, (most - mean) / error)
    log_weight += log_possible - squared_error / (2 * variance)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    amplitudes = most * QUANTILES
    cumulative = [
        float((weight * np.exp(_log_probability(-mean / error, (amplitude - mean) / error) - log_possible)).sum())
        for amplitude in amplitudes
    ]
    factors = np.concatenate([_half_factors(ratio) for _ in SHIFTS for ratio in RATIOS])
    order = np.argsort(factors)
    half_factor = float(np.interp(0.5, np.cumsum(weight.ravel()[order]), factors[order]))
    noise = math.sqrt(noise_variance)
    return RemainingLoss(amplitudes / last, np.array(cumulative), half_factor, noise, degrees_of_freedom)


def is_fitted(n_tokens: Float64[np.ndarray, " point"]) -> Bool[np.ndarray, " point"]:
    """Return which points are neither in the warm-up, the first tenth of the tokens, nor after 80 % of them.

    Args:
        n_tokens: tokens trained on, rising, above 0.
    """
    share = n_tokens / n_tokens[-1]
    fitted: np.ndarray = (share >= WARM_UP_SHARE) & (share <= DECAY_START)
    return fitted


def average_in_bins(
    n_tokens: npt.ArrayLike, loss: npt.ArrayLike, n_bins: int = 200
) -> tuple[Float64[np.ndarray, " bin"], Float64[np.ndarray, " bin"]]:
    """Average a learning curve of many points in bins that are evenly spaced in the logarithm of the tokens.

    A loss that is logged at every step is noisy, and most of its points are at its end.

    Args:
        n_tokens: [point] tokens trained on, rising, above 0.
        loss: [point] losses.
        n_bins: number of bins; a curve that does not have more points than this is returned as it is.

    Returns:
        Mean tokens and mean loss of each bin that holds a point.

    Example:
        >>> tokens, losses = average_in_bins(np.arange(1.0, 10_001.0), np.ones(10_000))
        >>> len(tokens) <= 200, float(losses.max())
        (True, 1.0)
    """
    n, losses = (np.asarray(values, dtype=np.float64) for values in (n_tokens, loss))
    if len(n) <= n_bins:
        return n, losses
    edges = np.geomspace(n[0], n[-1], n_bins + 1)[1:-1]
    bins = np.unique(np.digitize(n, edges), return_inverse=True)[1]
    counts = np.bincount(bins)
    return np.bincount(bins, n) / counts, np.bincount(bins, losses) / counts


def _other_terms(
    loss: Float64[np.ndarray, " point"], rates: Float64[np.ndarray, " point"] | None
) -> Float64[np.ndarray, "point term"]:
    """Return an orthonormal basis of the terms of a curve that are no power laws, divided by the losses."""
    terms = [1.0 / loss]
    if rates is not None and np.ptp(rates) > SMALLEST_CHANGE * np.abs(rates).max():
        terms.append(rates / loss)
    basis: np.ndarray = np.linalg.qr(np.stack(terms, 1))[0]
    return basis


def _amplitudes(
    share: Float64[np.ndarray, " point"],
    loss: Float64[np.ndarray, " point"],
    others: Float64[np.ndarray, "point term"],
    shift: float,
    ratio: float,
) -> tuple[Float64[np.ndarray, " exponent"], ...]:
    """Fit A and the other terms for one shift, one ratio and all exponents, by least squares of the relative errors.

    Returns:
        A, its standard error if the relative error is 1, the squared relative error, and the logarithm of the weight:
        of the prior of b and r, and of the volume of the A and L∞ that fit about as well.
    """
    x = (share - shift) / (1.0 - shift)
    power = (x ** -EXPONENTS[:, None] + x ** (-ratio * EXPONENTS[:, None])) / (2.0 * loss)
    # What the other terms explain is taken out of both sides (Frisch and Waugh 1933), so that A is left.
    power = power - power @ others @ others.T
    target = 1.0 - others @ others.sum(0)
    power_square = np.maximum((power**2).sum(1), 1e-300)
    amplitude = power @ target / power_square
    squared_error = ((amplitude[:, None] * power - target) ** 2).sum(1)
    deviation = np.log(EXPONENTS * math.sqrt(ratio) / TYPICAL_EXPONENT) / LOG_SPREAD
    log_weight = math.log(RATIOS[ratio]) - 0.5 * np.log(power_square) - deviation**2 / 2
    return amplitude, 1.0 / np.sqrt(power_square), squared_error, log_weight


def _log_probability(
    low: Float64[np.ndarray, "fit exponent"], high: Float64[np.ndarray, "fit exponent"]
) -> Float64[np.ndarray, "fit exponent"]:
    """Return the logarithm of the probability that a standard normal variable is between `low` and `high`.

    Both are mirrored where they are above 0, because small differences of probabilities near 1 are not exact.
    """
    mirrored = low > 0
    low, high = np.where(mirrored, -high, low), np.where(mirrored, -low, high)
    log_high = log_ndtr(high)
    with np.errstate(divide="ignore"):  # the probability of an empty interval is 0
        log_probability: np.ndarray = log_high + np.log1p(-np.exp(log_ndtr(low) - log_high))
    return log_probability


def _half_factors(ratio: float) -> Float64[np.ndarray, " exponent"]:
    """Return for each exponent the factor in tokens at which (x^-b + x^-rb) / 2 is a half, by bisection."""
    low, high = np.zeros(len(EXPONENTS)), math.log(2.0) / EXPONENTS
    for _ in range(50):
        middle = (low + high) / 2
        is_above = np.exp(-EXPONENTS * middle) + np.exp(-ratio * EXPONENTS * middle) > 1.0
        low, high = np.where(is_above, middle, low), np.where(is_above, high, middle)
    factors: np.ndarray = np.exp(high)
    return factors
