"""The power law of the sorted costs: how steeply they fall with the rank, and the cliff beyond which they fall faster.

Sarkar and Deka 2026 (arXiv 2604.04037) report for Pythia-410M that the features' importance follows a power law of the
rank, that the 20 or so most important dominate, and that there is a cliff near rank 3,000 of 28,700.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tl_distill_floor.theory.bootstrap import UNKNOWN, Z_95, Interval, block_bootstrap

N_TOP = 20
FEWEST = 10
"""Features with a cost that a law needs, and that each side of a cliff needs."""
N_POINTS, N_BREAKS = 256, 400
"""Places, evenly spaced in log rank, where the line is fitted, and where the cliff is looked for."""
UNEXPLAINED, LEAVES, STEEPER = 0.01, 0.5, 1.5
"""A bend is a cliff when one line leaves more than the first share of the variance unexplained, the bend at most the
second share of that, and the second piece is steeper by the third."""
DRAWS_AT_ONCE = 25


@dataclass(frozen=True)
class PowerLaw:
    """cost ~ rank^-slope up to the cliff, rank^-slope_beyond after it; ranks are counted from 1, intervals are 95 %."""

    slope: float
    """Of all ranks where there is no cliff."""
    cliff: float | None
    """Rank beyond which costs fall faster; None where one straight line says nearly as much."""
    slope_beyond: float | None
    top_share: float
    """Share of the summed cost that the 20 most costly features have."""
    r2: float
    """Share of the variance of log cost, over log rank, that the law explains."""
    slope_interval: Interval = UNKNOWN
    cliff_interval: Interval = UNKNOWN

    def lines(
        self, cost: Float64[np.ndarray, " feature"], ranks: Int64[np.ndarray, " rank"]
    ) -> list[tuple[float, Int64[np.ndarray, " _"], Float64[np.ndarray, " _"]]]:
        """(slope, ranks, costs) of the one or two lines, to be drawn beside the costs.

        Args:
            cost: [feature] above 0, falling.
            ranks: [rank] where the lines are wanted, rising from 1; those up to the cliff give the lines their height.
        """
        first = ranks if self.cliff is None else ranks[ranks <= self.cliff]
        height = float(np.mean(np.log(cost[first - 1]) + self.slope * np.log(first)))
        found = [(self.slope, first, np.exp(height - self.slope * np.log(first)))]
        if self.cliff is not None and self.slope_beyond is not None:
            beyond = np.concatenate([[round(self.cliff)], ranks[ranks > self.cliff]])
            at_cliff = height - self.slope * math.log(self.cliff)
            falls = at_cliff - self.slope_beyond * (np.log(beyond) - math.log(self.cliff))
            found.append((self.slope_beyond, beyond, np.exp(falls)))
        return found

    def __str__(self) -> str:
        """One line of a table."""
        law = f"cost ~ rank^-{self.slope:.2f}{_range(self.slope_interval, '.2f')}"
        if self.cliff is not None:
            law += f" up to rank {self.cliff:,.0f}{_range(self.cliff_interval, ',.0f')}, then ^-{self.slope_beyond:.1f}"
        return f"{law}; the top {N_TOP} have {self.top_share:.0%} of it"


def fit_power_law(cost: Any) -> PowerLaw | None:
    """Fit log cost against log rank with a line that may bend once, downwards.

    Least squares on places evenly spaced in log rank, between the ranks interpolated, so that the first ten features
    count as much as the last nine tenths. Only bends with 10 features on either side are looked at, and a bend is
    called a cliff only where a straight line explains less than 99 % of the variance, the bend at least halves what is
    left, and costs fall at least 1.5 times as steeply beyond. Sorted costs scatter together, so a test of significance
    would call every curve a cliff; one that bends smoothly is still called so, at its best-fitting place.

    Args:
        cost: [feature], at least 0, in any one unit, of the alive features; zeros are left out.

    Returns:
        The law, without intervals; None where fewer than 10 features have a cost above 0.

    Raises:
        ValueError: `cost` is no vector of finite numbers of at least 0.
    """
    costs = np.asarray(cost, dtype=np.float64)
    if costs.ndim != 1 or not (np.isfinite(costs) & (costs >= 0)).all():
        raise ValueError("cost must be a vector of finite numbers of at least 0")
    ordered = np.sort(costs[costs > 0])[::-1]
    if len(ordered) < FEWEST:
        return None
    profile = _profile(ordered)[None]
    straight, bent = _straight(profile, np.array([len(ordered)])), _bent(profile, np.array([len(ordered)]))
    top_share = float((ordered[:N_TOP] / ordered[0]).sum() / (ordered / ordered[0]).sum())
    variance = float(((profile - profile.mean()) ** 2).sum())
    if _is_cliff(straight, bent, variance):
        found = (float(bent.slope[0]), float(np.exp(bent.log_cliff[0])), float(bent.beyond[0]))
        return PowerLaw(*found, top_share, r2=_explained(bent, variance))
    return PowerLaw(float(straight.slope[0]), None, None, top_share, r2=_explained(straight, variance))


def power_law_with_intervals(
    cost: Float64[np.ndarray, " feature"],
    block_cost: Float64[np.ndarray, "block feature"],
    block_firing_count: Int64[np.ndarray, "block feature"],
    *,
    min_count: int = 1,
    n_bootstrap: int = 100,
    seed: int = 0,
) -> PowerLaw | None:
    """Fit the power law of the alive features' costs, with 95 % intervals from a bootstrap over blocks of the text.

    An interval is the measured value ± 1.96 standard deviations of the resampled ones (of log rank for the cliff). It
    is (NaN, NaN) if there is only one block.

    Args:
        cost: [feature] costs of the alive features, in any one unit.
        block_cost: [block, feature] their costs, summed over the tokens of each block.
        block_firing_count: [block, feature] tokens of each block on which they fire.
        min_count: a feature is alive in a resample if it fires on at least this many tokens.
        n_bootstrap: number of resamples.
        seed: seed of the resampling.

    Returns:
        None if fewer than 10 features have a cost above 0.
    """
    law = fit_power_law(cost)
    if law is None or len(block_cost) < 2 or n_bootstrap < 2:
        return law
    resamples = block_bootstrap(len(block_cost), n_bootstrap, seed)
    profiles, counts = _resampled_profiles(block_cost, block_firing_count, min_count, resamples)
    if len(counts) < 2:
        return law
    fits = _straight(profiles, counts) if law.cliff is None else _bent(profiles, counts)
    slope_error = Z_95 * float(np.std(fits.slope[np.isfinite(fits.slope)]))
    around = (max(law.slope - slope_error, 0.0), law.slope + slope_error)
    if law.cliff is None:
        return dataclasses.replace(law, slope_interval=around)
    factor = math.exp(Z_95 * float(np.std(fits.log_cliff[np.isfinite(fits.log_cliff)])))
    return dataclasses.replace(law, slope_interval=around, cliff_interval=(law.cliff / factor, law.cliff * factor))


class _Lines(NamedTuple):
    """Least-squares lines of several profiles."""

    slope: Float64[np.ndarray, " profile"]
    beyond: Float64[np.ndarray, " profile"]
    log_cliff: Float64[np.ndarray, " profile"]
    """Not a number where no bend downwards fits better than none."""
    squared_error: Float64[np.ndarray, " profile"]


def _profile(ordered: Float64[np.ndarray, " rank"]) -> Float64[np.ndarray, " point"]:
    """Log cost at the places, the costs falling."""
    log_rank = np.log(np.arange(1, len(ordered) + 1))
    profile: np.ndarray = np.interp(np.linspace(0.0, log_rank[-1], N_POINTS), log_rank, np.log(ordered))
    return profile


@cache
def _bases() -> tuple[
    Float64[np.ndarray, "bend point 3"], Float64[np.ndarray, "bend 3 3"], Float64[np.ndarray, " bend"]
]:
    """(orthonormal bases, triangles, places) of the lines 1, x, max(x − bend, 0), with x from 0 to 1 along the places.

    As shares of the log of the number of features they are the same for every number.
    """
    x = np.linspace(0.0, 1.0, N_POINTS)
    bends = np.linspace(0.0, 1.0, N_BREAKS + 2)[1:-1]
    bent = np.maximum(x[None] - bends[:, None], 0.0)
    bases, triangles = np.linalg.qr(np.stack([np.ones_like(bent), np.broadcast_to(x, bent.shape), bent], axis=-1))
    return bases, triangles, bends


def _straight(profile: Float64[np.ndarray, "profile point"], n: Int64[np.ndarray, " profile"]) -> _Lines:
    x = np.linspace(0.0, 1.0, N_POINTS) - 0.5
    centred = profile - profile.mean(axis=1, keepdims=True)
    falls = -(centred @ x) / (x @ x)
    error = ((centred + falls[:, None] * x) ** 2).sum(axis=1)
    slope = falls / np.log(n)
    return _Lines(slope, slope, np.full(len(n), np.nan), error)


def _bent(profile: Float64[np.ndarray, "profile point"], n: Int64[np.ndarray, " profile"]) -> _Lines:
    """The best of the lines that bend downwards."""
    bases, triangles, bends = _bases()
    parts = np.einsum("bpk,dp->dbk", bases, profile, optimize=True)
    lines = np.linalg.solve(triangles, parts[..., None])[..., 0]
    explained = np.where(_allowed(bends, n) & (lines[..., 2] < 0), (parts**2).sum(-1), -np.inf)
    which, best = np.arange(len(n)), explained.argmax(axis=1)
    error = np.maximum((profile**2).sum(axis=1) - explained[which, best], 0.0)
    found = np.where(np.isfinite(explained[which, best]), 1.0, np.nan)
    _, falls, bend = lines[which, best].T * found
    log_n = np.log(n)
    return _Lines(-falls / log_n, -(falls + bend) / log_n, bends[best] * found * log_n, error)


def _allowed(bends: Float64[np.ndarray, " bend"], n: Int64[np.ndarray, " profile"]) -> Bool[np.ndarray, "profile bend"]:
    """The bends that have enough features on either side."""
    rank = n[:, None] ** bends
    allowed: np.ndarray = (rank >= FEWEST) & (rank <= n[:, None] - FEWEST)
    return allowed


def _is_cliff(straight: _Lines, bent: _Lines, variance: float) -> bool:
    one, two = float(straight.squared_error[0]), float(bent.squared_error[0])
    steeper = bool(bent.beyond[0] > STEEPER * max(bent.slope[0], 0.0))
    return steeper and one > UNEXPLAINED * variance and two <= LEAVES * one


def _explained(lines: _Lines, variance: float) -> float:
    return 1.0 - float(lines.squared_error[0]) / variance if variance > 0 else 1.0


def _resampled_profiles(
    block_cost: Float64[np.ndarray, "block feature"],
    block_firing_count: Int64[np.ndarray, "block feature"],
    min_count: int,
    resamples: Int64[np.ndarray, "resample block"],
) -> tuple[Float64[np.ndarray, "resample point"], Int64[np.ndarray, " resample"]]:
    """Return (profiles, numbers of features) of the resampled texts that hold enough features."""
    count, times = block_firing_count.astype(np.float64), resamples.astype(np.float64)
    profiles, counts = [], []
    for some in np.array_split(times, -(-len(times) // DRAWS_AT_ONCE)):
        for costs in np.where(some @ count >= min_count, some @ block_cost, 0.0):
            ordered = np.sort(costs[costs > 0])[::-1]
            if len(ordered) >= FEWEST:
                profiles.append(_profile(ordered))
                counts.append(len(ordered))
    return np.array(profiles).reshape(-1, N_POINTS), np.array(counts, dtype=np.int64)


def _range(interval: Interval, form: str) -> str:
    low, high = interval
    return "" if math.isnan(high) else f" ({low:{form}} to {high:{form}})"
