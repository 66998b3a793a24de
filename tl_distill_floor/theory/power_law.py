"""The power law of the sorted costs: how fast they fall with the rank, and the cliff beyond which they fall faster.

Sarkar and Deka 2026 (arXiv 2604.04037) report for Pythia-410M that the importance of the features follows a power law
of the rank, that about 20 features dominate, and that there is a cliff near rank 3,000 of 28,700.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Float64, Int, Int64

from tl_distill_floor.theory.bootstrap import UNKNOWN, Interval, block_bootstrap, margin_95

N_TOP = 20
"""Number of features in `top_share`."""
MIN_FEATURES = 10
"""Fewest features with a cost that a fit needs, and that are needed on each side of a cliff."""
N_POINTS, N_BENDS = 256, 400
"""Number of points, evenly spaced in log rank, that the fit uses, and number of positions that are tried for a bend."""
MIN_UNEXPLAINED, MAX_ERROR_RATIO, MIN_STEEPENING = 0.01, 0.5, 1.5
"""A bend is a cliff if a straight fit leaves more than the first share of the variance unexplained, the bent fit leaves
at most the second share of that, and the exponent grows at least by the third factor."""
MIN_SLOPE_BEYOND = 1e-3
"""Smallest exponent beyond a cliff. Costs that are equal up to rounding have none."""
RESAMPLES_PER_PART, COSTS_PER_PART = 25, 2**24
"""Number of resamples that are in memory at once, and of their costs."""
FEATURES_PER_PART = 2**16
"""Number of features of which copies of the blocks' sums are in memory at once."""


@dataclass(frozen=True)
class PowerLaw:
    """cost ~ rank^-slope up to the cliff, and rank^-slope_beyond after it.

    Ranks are counted from 1. Intervals are 95 % intervals.
    """

    slope: float
    """Exponent up to the cliff; of all ranks if there is no cliff."""
    cliff: float | None
    """Rank beyond which costs fall faster; None if there is no cliff."""
    slope_beyond: float | None
    """Exponent beyond the cliff; None if there is no cliff."""
    top_share: float
    """Share of the summed cost that the 20 features with the largest costs have."""
    r2: float
    """Coefficient of determination R² of log cost over log rank."""
    slope_interval: Interval = UNKNOWN
    cliff_interval: Interval = UNKNOWN

    def lines(
        self, cost: Float64[np.ndarray, " feature"], ranks: Int64[np.ndarray, " rank"]
    ) -> list[tuple[float, Int64[np.ndarray, " _"], Float64[np.ndarray, " _"]]]:
        """Return the one or two straight lines of the law in a log-log plot of the costs.

        Args:
            cost: [feature] costs above 0, falling.
            ranks: [rank] ranks of the lines' points, rising from 1. The lines have the mean height of the costs at the
                ranks up to the cliff.

        Returns:
            For each line its exponent, its ranks, and the cost at each of them.

        Example:
            >>> cost = 1.0 / np.arange(1, 101)
            >>> [line] = fit_power_law(cost).lines(cost, np.array([1, 100]))
            >>> line[2].round(3).tolist()
            [1.0, 0.01]
        """
        first = ranks if self.cliff is None else ranks[ranks <= self.cliff]
        height = float(np.mean(np.log(cost[first - 1]) + self.slope * np.log(first)))
        lines = [(self.slope, first, np.exp(height - self.slope * np.log(first)))]
        if self.cliff is not None and self.slope_beyond is not None:
            beyond = np.concatenate([[round(self.cliff)], ranks[ranks > self.cliff]])
            log_cost_at_cliff = height - self.slope * math.log(self.cliff)
            log_cost = log_cost_at_cliff - self.slope_beyond * (np.log(beyond) - math.log(self.cliff))
            lines.append((self.slope_beyond, beyond, np.exp(log_cost)))
        return lines

    def __str__(self) -> str:
        """Return one line of a table."""
        law = f"cost ~ rank^-{self.slope:.2f}{_format_interval(self.slope_interval, '.2f')}"
        if self.cliff is not None:
            cliff = f"{self.cliff:,.0f}{_format_interval(self.cliff_interval, ',.0f')}"
            law += f" up to rank {cliff}, then ^-{self.slope_beyond:.1f}"
        return f"{law}; the top {N_TOP} have {self.top_share:.0%} of it"


def fit_power_law(cost: npt.ArrayLike) -> PowerLaw | None:
    """Fit log cost over log rank with a straight line, or with one that bends downwards once.

    The fit is least squares over points that are evenly spaced in log rank, so that the first ten features count as
    much as the last nine tenths. A bend needs 10 features on each side. It is a cliff only if the straight fit explains
    less than 99 % of the variance, the bent fit at least halves the error, and the exponent grows at least by a factor
    of 1.5, to 0.001 or more. A significance test would find a cliff in every curve, since the errors of sorted costs
    are correlated. A curve that bends smoothly also has a cliff, at the bend of the best fit.

    Args:
        cost: [feature] costs of the alive features, at least 0, in any unit; costs of 0 are left out.

    Returns:
        The fit without intervals; None if fewer than 10 features have a cost above 0.

    Raises:
        ValueError: `cost` is not a vector of finite numbers of at least 0.

    Example:
        >>> law = fit_power_law(1.0 / np.arange(1, 101))
        >>> round(law.slope, 3), law.cliff
        (1.0, None)
    """
    costs = np.asarray(cost, dtype=np.float64)
    if costs.ndim != 1 or not (np.isfinite(costs) & (costs >= 0)).all():
        raise ValueError("cost must be a vector of finite numbers of at least 0")
    sorted_cost = np.sort(costs[costs > 0])[::-1]
    if len(sorted_cost) < MIN_FEATURES:
        return None
    profile, n = _log_profile(sorted_cost)[None], np.array([len(sorted_cost)])
    straight, bent = _fit_straight(profile, n), _fit_bent(profile, n)
    top_share = float((sorted_cost[:N_TOP] / sorted_cost[0]).sum() / (sorted_cost / sorted_cost[0]).sum())
    variance = float(((profile - profile.mean()) ** 2).sum())
    if _is_cliff(straight, bent, variance):
        return PowerLaw(
            slope=max(0.0, float(bent.slope[0])),
            cliff=float(np.exp(bent.log_cliff[0])),
            slope_beyond=float(bent.slope_beyond[0]),
            top_share=top_share,
            r2=_r2(bent, variance),
        )
    return PowerLaw(max(0.0, float(straight.slope[0])), None, None, top_share, r2=_r2(straight, variance))


def power_law_with_intervals(
    cost: Float64[np.ndarray, " feature"],
    block_cost: Float[np.ndarray, "block feature"],
    block_firing_count: Int[np.ndarray, "block feature"],
    *,
    min_count: int = 1,
    n_bootstrap: int = 100,
    seed: int = 0,
) -> PowerLaw | None:
    """Fit the power law of the alive features' costs, with 95 % intervals from a bootstrap over blocks of the text.

    An interval is symmetric around the measured value (in log rank for the cliff), as wide as the spread of the
    resampled values says. It is (NaN, NaN) if there is only one block, or if the costs of most resamples do not have
    what the fit has.

    Args:
        cost: [feature] costs in any one unit; features of cost 0 are left out, so it is 0 for those that are not alive.
        block_cost: [block, feature] costs, summed over the tokens of each block.
        block_firing_count: [block, feature] tokens of each block on which the features fire.
        min_count: a feature is alive in a resample if it fires on at least this many tokens.
        n_bootstrap: number of resamples.
        seed: seed of the resampling.

    Returns:
        The fit; None if fewer than 10 features have a cost above 0.

    Raises:
        ValueError: see `fit_power_law`.

    Example:
        >>> cost = 1.0 / np.arange(1, 101)
        >>> counts = np.full((4, 100), 5)
        >>> law = power_law_with_intervals(cost, np.stack([cost] * 4), counts)
        >>> [round(bound, 3) for bound in law.slope_interval]
        [1.0, 1.0]
    """
    law = fit_power_law(cost)
    if law is None or len(block_cost) < 2 or n_bootstrap < 2:
        return law
    resamples = block_bootstrap(len(block_cost), n_bootstrap, seed)
    profiles, counts = _resampled_profiles(cost > 0, block_cost, block_firing_count, min_count, resamples)
    if len(counts) < 2:
        return law
    fits = _fit_straight(profiles, counts) if law.cliff is None else _fit_bent(profiles, counts)
    has_fit = np.isfinite(fits.slope)
    if 2 * has_fit.sum() < len(resamples):
        return law
    margin = float(margin_95(fits.slope[has_fit], len(block_cost)))
    slope_interval = (max(law.slope - margin, 0.0), law.slope + margin)
    if law.cliff is None:
        return dataclasses.replace(law, slope_interval=slope_interval)
    factor = math.exp(margin_95(fits.log_cliff[has_fit], len(block_cost)))
    cliff_interval = (max(law.cliff / factor, 1.0), min(law.cliff * factor, float((cost > 0).sum())))
    return dataclasses.replace(law, slope_interval=slope_interval, cliff_interval=cliff_interval)


class _ProfileFits(NamedTuple):
    """Least-squares fits of several profiles."""

    slope: Float64[np.ndarray, " profile"]
    """Exponent up to the bend."""
    slope_beyond: Float64[np.ndarray, " profile"]
    log_cliff: Float64[np.ndarray, " profile"]
    """Natural logarithm of the rank of the bend; NaN if no downward bend improves the fit."""
    squared_error: Float64[np.ndarray, " profile"]


def _log_profile(sorted_cost: Float64[np.ndarray, " rank"]) -> Float64[np.ndarray, " point"]:
    """Interpolate the log of falling costs at points that are evenly spaced in log rank."""
    log_rank = np.log(np.arange(1, len(sorted_cost) + 1))
    profile: np.ndarray = np.interp(np.linspace(0.0, log_rank[-1], N_POINTS), log_rank, np.log(sorted_cost))
    return profile


@cache
def _bend_bases() -> tuple[
    Float64[np.ndarray, "bend point 3"], Float64[np.ndarray, "bend 3 3"], Float64[np.ndarray, " bend"]
]:
    """Compute the QR decompositions of the regressors 1, x, max(x − bend, 0) for every bend.

    x runs from 0 to 1 over the points. In units of the log number of features, the bases are the same for every number.

    Returns:
        (orthonormal bases, triangular factors, bends).
    """
    x = np.linspace(0.0, 1.0, N_POINTS)
    bends = np.linspace(0.0, 1.0, N_BENDS + 2)[1:-1]
    hinge = np.maximum(x[None] - bends[:, None], 0.0)
    regressors = np.stack([np.ones_like(hinge), np.broadcast_to(x, hinge.shape), hinge], axis=-1)
    bases, triangles = np.linalg.qr(regressors)
    return bases, triangles, bends


def _fit_straight(profile: Float64[np.ndarray, "profile point"], n: Int64[np.ndarray, " profile"]) -> _ProfileFits:
    """Fit a straight line to each profile of `n` features."""
    x = np.linspace(0.0, 1.0, N_POINTS) - 0.5
    centred = profile - profile.mean(axis=1, keepdims=True)
    decrease = -(centred @ x) / (x @ x)
    error = ((centred + decrease[:, None] * x) ** 2).sum(axis=1)
    slope = decrease / np.log(n)
    return _ProfileFits(slope, slope, np.full(len(n), np.nan), error)


def _fit_bent(profile: Float64[np.ndarray, "profile point"], n: Int64[np.ndarray, " profile"]) -> _ProfileFits:
    """Fit the best line that bends downwards once to each profile of `n` features."""
    bases, triangles, bends = _bend_bases()
    projections = np.einsum("bpk,dp->dbk", bases, profile, optimize=True)
    coefficients = np.linalg.solve(triangles, projections[..., None])[..., 0]
    is_allowed = _allowed_bends(bends, n) & (coefficients[..., 2] < 0)
    explained = np.where(is_allowed, (projections**2).sum(-1), -np.inf)
    rows, best = np.arange(len(n)), explained.argmax(axis=1)
    error = np.maximum((profile**2).sum(axis=1) - explained[rows, best], 0.0)
    one_or_nan = np.where(np.isfinite(explained[rows, best]), 1.0, np.nan)
    _, gradient, bend = coefficients[rows, best].T * one_or_nan
    log_n = np.log(n)
    return _ProfileFits(-gradient / log_n, -(gradient + bend) / log_n, bends[best] * one_or_nan * log_n, error)


def _allowed_bends(
    bends: Float64[np.ndarray, " bend"], n: Int64[np.ndarray, " profile"]
) -> Bool[np.ndarray, "profile bend"]:
    """Return which bends have enough features on each side."""
    rank = n[:, None] ** bends
    allowed: np.ndarray = (rank >= MIN_FEATURES) & (rank <= n[:, None] - MIN_FEATURES)
    return allowed


def _is_cliff(straight: _ProfileFits, bent: _ProfileFits, variance: float) -> bool:
    """Return whether the bend of the first profile is a cliff; see `fit_power_law`."""
    straight_error, bent_error = float(straight.squared_error[0]), float(bent.squared_error[0])
    is_steeper = bool(bent.slope_beyond[0] > max(MIN_STEEPENING * bent.slope[0], MIN_SLOPE_BEYOND))
    is_better = straight_error > MIN_UNEXPLAINED * variance and bent_error <= MAX_ERROR_RATIO * straight_error
    return is_steeper and is_better


def _r2(fits: _ProfileFits, variance: float) -> float:
    """Compute R² of the first profile."""
    return 1.0 - float(fits.squared_error[0]) / variance if variance > 0 else 1.0


def _resampled_profiles(
    has_cost: Bool[np.ndarray, " feature"],
    block_cost: Float[np.ndarray, "block feature"],
    block_firing_count: Int[np.ndarray, "block feature"],
    min_count: int,
    resamples: Int64[np.ndarray, "resample block"],
) -> tuple[Float64[np.ndarray, "kept point"], Int64[np.ndarray, " kept"]]:
    """Return (profiles, numbers of features) of the resamples that have enough features with a cost."""
    times, profiles, counts = resamples.astype(np.float64), [], []
    resamples_per_part = max(1, min(RESAMPLES_PER_PART, COSTS_PER_PART // len(has_cost)))
    buffer = np.empty((min(resamples_per_part, len(times)), len(has_cost)))
    for part in np.array_split(times, -(-len(times) // resamples_per_part)):
        resampled = buffer[: len(part)]
        for first in range(0, len(has_cost), FEATURES_PER_PART):
            features = slice(first, first + FEATURES_PER_PART)
            is_alive = part @ block_firing_count[:, features] >= min_count
            np.matmul(part, block_cost[:, features], out=resampled[:, features])
            resampled[:, features] *= is_alive & has_cost[features]
        for costs in resampled:
            sorted_cost = np.sort(costs[costs > 0])[::-1]
            if len(sorted_cost) >= MIN_FEATURES:
                profiles.append(_log_profile(sorted_cost))
                counts.append(len(sorted_cost))
    return np.array(profiles).reshape(-1, N_POINTS), np.array(counts, dtype=np.int64)


def _format_interval(interval: Interval, form: str) -> str:
    """Return " (low to high)", or nothing if the interval is unknown."""
    low, high = interval
    return "" if math.isnan(high) else f" ({low:{form}} to {high:{form}})"
